"""What makes a site of the documents, whose links are written for a code host (`hooks` of mkdocs.yml).

The site's pages are those of docs/ and what they link to outside: Markdown becomes a page, a picture is copied, a
source file becomes a page that shows it. With `repo_url` in mkdocs.yml links to source files lead to the repository
instead. A folder has no page: without `repo_url` its path takes the place of the link. Formulas become MathML, which
needs no script.
"""

import html
import os
import re
from collections.abc import Callable
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
# Whether a picture, label, target.
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
COPIED = (".md", ".png", ".svg")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".ipynb": "json"}


def replaced(markdown: str, replace: Callable[[re.Match[str]], str]) -> str:
    """`markdown` with each link that stands outside of fenced blocks replaced."""
    parts = FENCED.split(markdown)
    return "".join(part if place % 2 else LINK.sub(replace, part) for place, part in enumerate(parts))


def source(file: File) -> Path | None:
    """Where a page was written; None: it was made by `shown`."""
    return Path(file.abs_src_path) if file.abs_src_path else None


def target(page: Path, link: str) -> tuple[Path, str] | None:
    """Path and anchor that a link of `page` leads to; None: it leads to another site, or stays on the page."""
    path, mark, anchor = link.partition("#")
    if not path or re.match(r"\w+:", path):
        return None
    return Path(os.path.normpath(page.parent / path)), mark + anchor


def uri(path: Path) -> str:
    """The place of a file among the site's sources: docs/ is its root, all else lies as in the repository."""
    inside = path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()
    return inside if path.is_relative_to(DOCS) or path.suffix in COPIED else f"{inside}.md"


def shown(path: Path) -> str:
    """A page with the text of a source file, which the search passes over."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    return (
        f"---\nsearch: {{ exclude: true }}\n---\n# `{name}`\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"
    )


def brought(path: Path, config: MkDocsConfig) -> File:
    """A file from outside of docs/ as one of the site."""
    if path.suffix not in COPIED:
        return File.generated(config, uri(path), content=shown(path), inclusion=InclusionLevel.NOT_IN_NAV)
    return File.generated(config, uri(path), abs_src_path=str(path))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and what the pages link to outside of docs/, and what that links to in turn."""
    files.append(brought(ROOT / "README.md", config))
    waiting = list(files.documentation_pages())
    while waiting:
        file = waiting.pop()
        page = source(file)
        if page is None:
            continue
        for link in LINK.finditer("".join(FENCED.split(file.content_string)[::2])):
            path, _ = target(page, link[3]) or (page, "")
            outside = path.is_file() and path.is_relative_to(ROOT) and not path.is_relative_to(DOCS)
            hosted = config.repo_url and path.suffix not in COPIED
            if outside and not hosted and uri(path) not in files.src_uris:
                files.append(brought(path, config))
                waiting += [files.src_uris[uri(path)]] if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let each link lead to what the site has of its target."""
    written = source(page.file)
    if written is None:
        return markdown
    here = Path(page.file.src_uri).parent

    def replace(link: re.Match[str]) -> str:
        picture, label, given = link.groups()
        found = target(written, given)
        if found is None or not found[0].is_relative_to(ROOT):
            return link[0]
        path, anchor = found
        if uri(path) in files.src_uris or path.is_relative_to(DOCS):
            return f"{picture}[{label}]({os.path.relpath(uri(path), here)}{anchor})"
        name = path.relative_to(ROOT).as_posix()
        if config.repo_url:
            return f"[{label}]({config.repo_url.rstrip('/')}/blob/HEAD/{name})"
        if not path.exists():
            return link[0]  # for the strict build to find
        return label if path.name in label else f"{label} (`{name}`)"

    # A code host wants a bar within code of a table escaped, the site's Markdown as it is.
    rows = re.sub(
        r"^\|.*", lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row[0]), markdown, flags=re.M
    )
    return replaced(rows, replace)


def on_page_content(html_text: str, **_: object) -> str:
    """Formulas, which arithmatex has found, as MathML."""

    def drawn(found: re.Match[str]) -> str:
        # The converter knows the second of the two alone.
        tex = html.unescape(found[2]).strip().replace(r"\arg\max", r"\text{arg max}")
        return convert(tex, display="block" if found[1] == "div" else "inline")

    return FORMULA.sub(drawn, html_text)
