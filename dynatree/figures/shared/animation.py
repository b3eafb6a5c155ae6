"""Recorded rounds as an animated SVG, which pages show that run no scripts. Knows no figure.

Every piece of text has a keyframe rule of its own, since all share the loop's length but not their moment. Readers who
ask for less motion, and programs that know no animation, see the end: all text, and each method's largest tree.
"""

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dynatree.figures.shared import grammar, theme

WIDTH, MARGIN = 880, 16
# The text's part of a lane, and the tree's beside it.
COLUMNS, LETTER, LINE, SIZE = 74, 7.2, 17, 12
TREE, ROW, SMALL = 300, 15, 10
MOST_LINES, LEVELS, ROWS = 7, 5, 7
# Seconds that the slowest lane takes, and that the end stays.
PLAYED, HELD = 10.0, 2.0

_STYLE = f"""
svg {{ --ink: #222; --quiet: #767676; --page: #fff; --line: #ddd; --lost: #ececec; }}
@media (prefers-color-scheme: dark) {{
  svg {{ --ink: #e8e8e8; --quiet: #9a9a9a; --page: #181a1b; --line: #3a3d3f; --lost: #34373a; }}
}}
text {{ fill: var(--ink); font: {SIZE}px {theme.MONO}; white-space: pre; }}
.name {{ font: bold 15px {theme.FONT}; }}
.said {{ font: 12px {theme.FONT}; fill: var(--quiet); }}
.node text {{ font-size: {SMALL}px; fill: var(--quiet); }}
.node rect {{ fill: var(--lost); }}
.kept text {{ fill: #fff; }}
.own text {{ fill: var(--ink); }}
.own rect {{ fill: none; }}
.tree {{ opacity: 0; }}
.still {{ opacity: 1; }}
.moving {{ animation: {PLAYED + HELD:g}s step-end infinite; }}
.bar {{ transform-box: fill-box; transform-origin: left; }}
@media (prefers-reduced-motion: reduce) {{ .moving {{ animation: none; }} }}
"""


def picture(said: str, lanes: Sequence[Mapping[str, Any]]) -> str:
    """The SVG of `lanes`, which are as for `replay.page`, under a sentence; the longest takes `PLAYED` s."""
    longest = max(lane["rounds"][-1]["end"] for lane in lanes)
    most = max(sum(each["tokens"] for each in lane["rounds"]) for lane in lanes)
    rules: list[str] = []
    parts, y = [], MARGIN + 8
    parts.append(_text(MARGIN, y, f"{said} {1000 * PLAYED / longest:.0f} times slower than it ran.", "said"))
    for lane in lanes:
        y += 26
        drawn, height = _lane(lane, y, longest, most, rules)
        parts += drawn
        y += height
    size = f'viewBox="0 0 {WIDTH} {y + MARGIN}" width="{WIDTH}" height="{y + MARGIN}"'
    ground = f'<rect width="{WIDTH}" height="{y + MARGIN}" rx="6" fill="var(--page)"/>'
    style = f"<style>{_STYLE}{''.join(rules)}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{ground}{"".join(parts)}</svg>\n'


def _lane(lane: Mapping[str, Any], y: int, longest: float, most: int, rules: list[str]) -> tuple[list[str], int]:
    """Its elements from `y` on, and how high they are; what moves adds to the keyframe `rules`."""
    rounds, tone = lane["rounds"], lane["colour"]
    tokens = sum(each["tokens"] for each in rounds)
    done = f"{grammar.plural(tokens, 'token')} in {grammar.plural(len(rounds), 'round')}, {rounds[-1]['end']:,.0f} ms"
    parts = [
        _text(MARGIN, y, lane["name"], "name", f"fill:{tone}"),
        _text(WIDTH - MARGIN, y, done, "said", "text-anchor:end"),
    ]
    parts += _bar(rounds, y + 8, longest, most, tone, rules)
    top, lines = y + 32, 0
    written = [(0.0, lane["prefix"]), *((each["end"], each["text"]) for each in rounds)]
    for moment, row, column, text in _wrapped(written):
        if row < MOST_LINES:
            x, length = MARGIN + column * LETTER, f'textLength="{len(text) * LETTER:.1f}"'
            name = _from(moment, longest, rules)
            parts.append(_text(x, top + row * LINE, text, "moving", f"animation-name:{name}", length))
            lines = max(lines, row + 1)
    largest = max(range(len(rounds)), key=lambda place: len(rounds[place]["nodes"]))
    rows = 0
    for place, each in enumerate(rounds):
        if not each["nodes"]:
            continue
        cells, used = _tree(each, top - 11, tone)
        # The tree of a round stays until that of the next one is there.
        until = rounds[place + 1]["end"] if place + 1 < len(rounds) else longest * (1 + HELD / PLAYED)
        name = _within(each["end"], until, longest, rules)
        look = "tree moving still" if place == largest else "tree moving"
        parts.append(f'<g class="{look}" style="animation-name:{name}">{"".join(cells)}</g>')
        rows = max(rows, used)
    return parts, 32 + max(lines * LINE, rows * ROW)


def _bar(
    rounds: Sequence[Mapping[str, Any]], y: int, longest: float, most: int, tone: str, rules: list[str]
) -> list[str]:
    """A bar of as many tokens as are there, of `most`."""
    whole = WIDTH - 2 * MARGIN
    tokens = list(itertools.accumulate(each["tokens"] for each in rounds))
    steps = "".join(
        f"{_percent(each['end'], longest)}{{transform:scaleX({count / tokens[-1]:.3f})}}"
        for each, count in zip(rounds, tokens, strict=True)
    )
    name = _rule(f"0%{{transform:scaleX(0)}}{steps}", rules)
    return [
        f'<rect x="{MARGIN}" y="{y}" width="{whole}" height="5" fill="var(--line)"/>',
        f'<rect class="bar moving" style="animation-name:{name}" x="{MARGIN}" y="{y}" '
        f'width="{whole * tokens[-1] / most:.1f}" height="5" fill="{tone}"/>',
    ]


def _wrapped(written: Sequence[tuple[float, str]]) -> Iterator[tuple[float, int, int, str]]:
    """(moment, row, column, text) of pieces that follow one another, broken between words, none beyond COLUMNS."""
    whole = [(moment, grammar.visible(text.replace("\n", "¶")).replace("·", " ")) for moment, text in written]
    starts = _line_starts("".join(text for _, text in whole))
    place = row = 0
    for moment, text in whole:
        left = text
        while left:
            row += row + 1 < len(starts) and place == starts[row + 1]
            room = starts[row + 1] - place if row + 1 < len(starts) else len(left)
            piece, left = left[:room], left[room:]
            if piece.strip():
                yield moment, row, place - starts[row], piece
            place += len(piece)


def _line_starts(text: str) -> list[int]:
    """Where each line of `text` begins: after a space, or inside a word that is too long for a line of its own."""
    starts = [0]
    while len(text) - starts[-1] > COLUMNS:
        space = text.rfind(" ", starts[-1] + 1, starts[-1] + COLUMNS)
        starts.append(space + 1 if space >= 0 else starts[-1] + COLUMNS)
    return starts


def _tree(each: Mapping[str, Any], top: int, tone: str) -> tuple[list[str], int]:
    """Boxes of the nodes, a level a column and a leaf a row, below them the target's own token; how many rows."""
    deepest, below = 0, 0
    cells, row, taken = [], 0, set()
    for node in each["nodes"]:
        # A first child goes on in its parent's row.
        row += node["parent"] in taken
        taken.add(node["parent"])
        if node["accepted"]:
            deepest, below = node["depth"], row
        if node["depth"] <= LEVELS and row < ROWS:
            cells.append(_cell(node["depth"] - 1, row, top, node["text"], "kept" if node["accepted"] else "", tone))
    if deepest > LEVELS:
        cells.append(_cell(LEVELS, min(below, ROWS - 1), top, f"+{deepest - LEVELS}", "kept", tone))
        return cells, min(row, ROWS - 1) + 1
    last = min(row + 1, ROWS)
    return [*cells, *(_cell(deepest, last, top, text, "own", tone) for text in each["own"][:1])], last + 1


def _cell(column: int, row: int, top: int, text: str, kind: str, tone: str) -> str:
    step = TREE / (LEVELS + 1)
    x, y, wide = WIDTH - MARGIN - TREE + column * step, top + row * ROW, step - 3
    look = {"kept": f'style="fill:{tone}"', "own": f'stroke="{tone}"'}.get(kind, "")
    shown = html.escape(grammar.fitting(text, wide - 2, SMALL))
    box = f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{ROW - 2}" rx="2" {look}/>'
    return f'<g class="node {kind}">{box}<text x="{x + 2:.1f}" y="{y + 10}">{shown}</text></g>'


def _from(moment: float, longest: float, rules: list[str]) -> str:
    """The keyframe rule of what is there from `moment` on."""
    return _rule(f"0%{{opacity:0}}{_percent(moment, longest)}{{opacity:1}}", rules) if moment else "none"


def _within(begin: float, end: float, longest: float, rules: list[str]) -> str:
    """The keyframe rule of what is there from `begin` to `end`."""
    steps = f"0%{{opacity:0}}{_percent(begin, longest)}{{opacity:1}}"
    return _rule(f"{steps}{_percent(end, longest)}{{opacity:0}}", rules)


def _rule(steps: str, rules: list[str]) -> str:
    name = f"k{len(rules)}"
    rules.append(f"@keyframes {name}{{{steps}}}\n")
    return name


def _percent(moment: float, longest: float) -> str:
    """Where `moment` lies in the loop."""
    return f"{min(100.0, 100 * moment / longest * PLAYED / (PLAYED + HELD)):.2f}%"


def _text(x: float, y: float, text: str, kind: str, style: str = "", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" style="{style}" {more}>{html.escape(text)}</text>'
