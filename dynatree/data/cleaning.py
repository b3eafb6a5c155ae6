"""Take the licence and the front matter off a Project Gutenberg book. Knows no file and no archive."""

import itertools
import re

_MENTION = re.compile(r"project\s+gutenberg|gutenberg\.org|gutenberg\.net", re.IGNORECASE)
_START = re.compile(
    r"^.*(?:\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG|\*END[* ]*THE SMALL PRINT|END.{0,30}SMALL PRINT!).*$",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"^.*(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:The |This )?Project Gutenberg"
    r"|\*\*\*START\*\*THE SMALL PRINT).*$",
    re.IGNORECASE | re.MULTILINE,
)
_CREDIT = re.compile(
    r"^(?:e-?text prepared|produced by|prepared by|transcribed|this e-?(?:text|book)|\[?_?transcriber|editor's note"
    r"|\[illustration|copyright|all rights reserved|\[_all rights|(?:first|second|third) edition|printed (?:by|in)"
    r"|digraphs|note: project)"
    r"|distributed proofread|online proofread|spelling has been modernized|updated editions will replace",
    re.IGNORECASE,
)
_BACK = re.compile(
    r"^\W*(?:the end|finis|the end of .{0,60}|\w+: printed (?:by|at) .*|\[?transcriber.*)\W*$", re.I | re.S
)
_CAST = re.compile(r"^\W*(?:dramatis person\S+|persons? (?:represented|of the play)|characters)\W*$", re.I | re.M)
_STAGE = re.compile(r"^\s*(?:the )?(?:act (?:i|1|first|one)\b|prologue\b|induction\b).*$", re.IGNORECASE | re.MULTILINE)
_CONTENTS = re.compile(r"^\W*(?:table of )?contents\W*$", re.IGNORECASE)
_PAGE = re.compile(r"[\s.,_]*(?:\d+|[ivxlc]+)?[\s.,_]*$", re.IGNORECASE)
_FRONT_SHARE = 0.25  # front matter that would be longer than this is not front matter
_PROSE_WORDS = 20  # a paragraph, or the first stanza of a poem


def mentions_gutenberg(text: str) -> bool:
    """Whether the text speaks of Project Gutenberg near its beginning or end, where its licence stands."""
    return bool(_MENTION.search(text[:30_000]) or _MENTION.search(text[-30_000:]))


def strip_book(text: str) -> str:
    """The body of a book: no licence, title page, list of contents or of persons, transcriber's notes.

    What remains has no line that speaks of Project Gutenberg. A text without any marker loses at most what looks like
    a title page. Line feeds only are expected.
    """
    text = single_spaced(_without_licence(text.replace("\x1a", "")))  # the end-of-file mark of old systems
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    blocks = [kept for block in blocks if (kept := _without_mention(block)).strip()]
    text = _without_front_matter(blocks)
    blocks = text.split("\n\n")
    while blocks and (_BACK.match(blocks[-1].strip()) or not blocks[-1].strip()):
        blocks.pop()
    lines = "\n\n".join(blocks).split("\n")
    while lines and _BACK.match(lines[-1].strip() or "."):
        lines.pop()
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n" if lines else ""


def single_spaced(text: str) -> str:
    """Undo double spacing (an empty line after every line): groups of three and more line feeds part paragraphs."""
    lines = text.split("\n")
    full = sum(1 for line in lines if line.strip())
    adjacent = sum(1 for a, b in itertools.pairwise(lines) if a.strip() and b.strip())
    wide = len(re.findall(r"\n{4,}", text))
    # Paragraphs on one long line each also alternate with empty lines, but nothing wider parts them.
    if full < 20 or adjacent > 0.02 * full or wide < 0.01 * full:
        return text
    return re.sub(r"\n{2,}", lambda gap: "\n" if len(gap[0]) == 2 else "\n\n", text)


def _without_licence(text: str) -> str:
    half = len(text) // 2
    starts = [match.end() for match in _START.finditer(text) if match.start() <= half]
    start = max(starts, default=0)
    cut = re.match(r"\s*[^\n]{0,80}\*\*\*\s*\n", text)  # the tail of a header line that someone cut
    if not starts and cut:
        start = cut.end()
    end = next((match.start() for match in _END.finditer(text) if match.start() > max(start, half)), len(text))
    return text[start:end]


def _without_mention(block: str) -> str:
    if not _MENTION.search(block):
        return block
    lines = block.split("\n")
    return "" if len(lines) <= 30 else "\n".join(line for line in lines if not _MENTION.search(line))


def _without_front_matter(blocks: list[str]) -> str:
    text = "\n\n".join(blocks)
    limit = max(int(len(text) * _FRONT_SHARE), 6000)
    cast = _CAST.search(text, 0, limit)
    stage = _STAGE.search(text, cast.end(), limit) if cast else None
    if stage:
        return text[stage.start() :]
    first, position = 0, 0
    entries: list[str] | None = None
    for index, block in enumerate(blocks):
        position += len(block)
        if position > limit:
            break
        lines = [line.strip() for line in block.strip().split("\n")]
        if _CONTENTS.match(lines[0]):
            entries, lines = [], lines[1:]
        if entries is not None:
            names = [name for line in lines if (name := _entry(line))]
            if entries and names and names[0] == entries[0]:
                entries = None
            else:
                entries += [name for name in names if name != "page"]
                continue
        if _is_body(lines):
            first = index
            break
    return "\n\n".join(blocks[first:])


def _entry(line: str) -> str:
    return re.sub(r"\W+", " ", _PAGE.sub("", line)).strip().lower()


def _is_body(lines: list[str]) -> bool:
    words = re.findall(r"[^\W\d_]+", " ".join(lines))
    lower = sum(1 for word in words if word[0].islower())
    return len(words) >= _PROSE_WORDS and lower >= 0.4 * len(words) and not _CREDIT.search(" ".join(lines))
