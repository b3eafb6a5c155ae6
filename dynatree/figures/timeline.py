"""One prompt on one time axis, in new text and in a loop: what each round drafts, has verified, keeps and drops.

Knows phases and the nodes that were verified in them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, legends, queries, theme
from dynatree.tables.rounds import REPEATED_NGRAM, TOKEN_SEPARATOR

TABLES: tuple[str, ...] = ("phases", "nodes")
SECTION = "Method"
SHOWS = "timeline"

SHOWN = ("autoregressive", "linear", "dynatree")  # where all of them were recorded; else what was
LIMIT = 16  # tokens of the first method: what a window lasts
WIDTH, CELL, BAR = 790, 14, 10
MOST_ACCEPTED, MOST_REJECTED = 6, 3  # cells of a stack; the last one counts what does not fit
DROPPED = "#efefef"


class Round(NamedTuple):
    """One round of a pass: ms from the request's start, and tokens; `first`: the place of its first in the output."""

    first: int
    start: float
    end: float
    bars: list[queries.Row]
    texts: list[str]
    accepted: int
    nodes: list[queries.Row]

    @property
    def rejected(self) -> list[str]:
        """Texts of the nodes that were verified and not accepted, the likeliest first."""
        lost = [row for row in self.nodes if not row["accepted"]]
        return [row["text"] for row in sorted(lost, key=lambda row: (-row["path_log_probability"], row["node"]))]


class Lane(NamedTuple):
    """One method's whole rounds in a window, from `start` on in ms; `bars`: also of a round that outlasts it."""

    method: str
    start: float
    rounds: list[Round]
    bars: list[queries.Row]
    ended: bool

    @property
    def tokens(self) -> int:
        """Tokens that its rounds emit."""
        return sum(len(each.texts) for each in self.rounds)


class Window(NamedTuple):
    """A stretch of the output, and the rounds with which each method makes it within `ms`."""

    name: str
    ms: float
    lanes: list[Lane]


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """Per window one lane a method, in ms from its first round on. Raises UserError if there is no phase."""
    _, windows = _windows(tables)
    entries: list[tuple[str, str, str]] = [
        (label, theme.PHASES[phase], theme.PHASES[phase])
        for phase, label in (("draft", "drafting"), ("verify", "target forward"), ("select", "selecting, cache"))
    ]
    entries += [
        (f"{theme.display(lane.method)}: accepted", theme.colour(lane.method), theme.colour(lane.method))
        for lane in windows[0].lanes
        if lane.method not in queries.UNDRAFTED
    ]
    entries += [("verified and rejected", DROPPED, DROPPED), ("the target's own token", "white", theme.QUIET)]
    stacked = [
        alt.vconcat(
            *(_lane(lane, window.ms, lane is window.lanes[-1]) for lane in window.lanes),
            title=alt.TitleParams(f"{window.name}, {grammar.number(window.ms)} ms", offset=8),
            spacing=6,
        )
        for window in windows
    ]
    return theme.finish(alt.vconcat(legends.boxes(entries, WIDTH), *stacked, spacing=18))


def _stack(each: Round) -> list[queries.Row]:
    """The cells of a round from the bottom up: the target's own token, the accepted path backwards, the rejected."""
    own, path = each.texts[each.accepted :], each.texts[: each.accepted]
    cells = [{"text": grammar.visible(text), "kind": "own"} for text in own]
    kept = path if len(path) <= MOST_ACCEPTED else path[: MOST_ACCEPTED - 1]
    more = [f"+{len(path) - len(kept)}"] * (len(path) > len(kept))
    cells += [{"text": text, "kind": "accepted"} for text in [*more, *map(grammar.visible, reversed(kept))]]
    lost = each.rejected if len(each.rejected) <= MOST_REJECTED else each.rejected[: MOST_REJECTED - 1]
    more = [f"+{len(each.rejected) - len(lost)}"] * (len(each.rejected) > len(lost))
    return cells + [{"text": text, "kind": "rejected"} for text in [*more, *map(grammar.visible, reversed(lost))]]


def _lane(lane: Lane, longest: float, last: bool) -> theme.Layers:
    tone = theme.colour(lane.method)
    cells: list[queries.Row] = []
    looks = {
        "own": {"fill": "white", "stroke": tone, "ink": theme.INK},
        "accepted": {"fill": tone, "stroke": "white", "ink": "white"},
        "rejected": {"fill": DROPPED, "stroke": "white", "ink": theme.QUIET},
    }
    for each in lane.rounds:
        left, right = each.start - lane.start, each.end - lane.start
        room = (right - left) / longest * WIDTH - 3
        for place, cell in enumerate(_stack(each)):
            bottom = BAR + 4 + place * CELL
            cells.append(
                {"x": left, "x2": right, "xm": (left + right) / 2, "words": grammar.fitting(cell["text"], room, 10)}
                | {"y": bottom, "y2": bottom + CELL - 1, "middle": bottom + CELL / 2 - 0.5}
                | looks[cell["kind"]]
            )
    high = max(cell["y2"] for cell in cells) + 2
    scale, upright = alt.Scale(domain=[0, longest], nice=False), alt.Scale(domain=[0, high], nice=False)
    axis = alt.Axis(title="ms", grid=False, tickCount=10) if last else None
    x, y = alt.X("x:Q", scale=scale, axis=axis), alt.Y("y:Q", scale=upright, axis=None)
    title = alt.TitleParams(_said(lane), fontSize=theme.SMALL, fontWeight="normal", offset=4)
    bars = alt.Chart(queries.data(lane.bars), width=WIDTH, height=high, title=title).mark_rect(
        stroke="white", strokeWidth=0.4
    )
    boxes = alt.Chart(queries.data(cells)).mark_rect(strokeWidth=1, cornerRadius=2)
    words = alt.Chart(queries.data(cells)).mark_text(font=theme.MONO, fontSize=10, baseline="middle")
    fill = alt.Fill("fill:N", scale=None)
    return alt.layer(
        bars.encode(x=x, x2="x2:Q", y=y, y2="y2:Q", fill=fill),
        boxes.encode(x=x, x2="x2:Q", y=y, y2="y2:Q", fill=fill, stroke=alt.Stroke("stroke:N", scale=None)),
        words.encode(
            x=alt.X("xm:Q", scale=scale, axis=axis),
            y=alt.Y("middle:Q", scale=upright, axis=None),
            text="words:N",
            color=alt.Color("ink:N", scale=None),
        ),
    )


def _said(lane: Lane) -> str:
    """`DynaTree: 24 tokens in 9 rounds, 15 of 40 drafted tokens accepted`."""
    text = f"{theme.display(lane.method)}: {grammar.plural(lane.tokens, 'token')} in "
    text += grammar.plural(len(lane.rounds), "round")
    accepted = sum(each.accepted for each in lane.rounds)
    drafted = accepted + sum(len(each.rejected) for each in lane.rounds)
    if drafted:
        text += f", {accepted} of {grammar.plural(drafted, 'drafted token')} accepted"
    return text + (", then the record ends" if lane.ended else "")


def passes(tables: Mapping[str, pa.Table]) -> tuple[str, dict[str, list[Round]]]:
    """A prompt, and the rounds of each method's instrumented pass over it, in drawing order.

    The prompt is the first, in name order, among those with the most of the shown methods. Raises UserError if there is
    no phase, or nothing tells what a method had verified.
    """
    rows = queries.rows(tables, "phases")
    complete = {row["method"] for row in rows}.issuperset(SHOWN)
    shown = [row for row in rows if row["method"] in SHOWN] if complete else rows
    methods: dict[str, set[str]] = {}
    for row in shown:
        methods.setdefault(row["prompt_id"], set()).add(row["method"])
    prompt = min(methods, key=lambda name: (-len(methods[name]), name))
    return prompt, {
        method: _rounds([r for r in shown if (r["prompt_id"], r["method"]) == (prompt, method)], tables)
        for method in theme.ordered(methods[prompt])
    }


def _windows(tables: Mapping[str, pa.Table]) -> tuple[str, list[Window]]:
    """The prompt, and its windows: from the first token on, and from where the first method's output is in a loop."""
    prompt, found = passes(tables)
    first = next(iter(found.values()))
    looping = _loop([text for each in first for text in each.texts])
    fresh = "New text" if looping is None or looping >= LIMIT else "From the first token on"
    windows = [_window(fresh, found, 0)]
    if looping is not None and first[-1].first >= looping:
        windows.append(_window(f"In a loop, from token {first[0].first + looping + 1} on", found, looping))
    return prompt, windows


def _loop(texts: Sequence[str]) -> int | None:
    """Where the first run of REPEATED_NGRAM tokens that occurred before begins; None if nothing repeats so long."""
    seen: set[tuple[str, ...]] = set()
    for place in range(len(texts) - REPEATED_NGRAM + 1):
        gram = tuple(texts[place : place + REPEATED_NGRAM])
        if gram in seen:
            return place
        seen.add(gram)
    return None


def _window(name: str, found: Mapping[str, list[Round]], place: int) -> Window:
    """From the first whole round of each method that begins at that place of the output or after it."""
    parts = {}
    for method, every in found.items():
        # A round may reach beyond the place: its method then begins a little later in the text.
        parts[method] = [each for each in every if each.first - every[0].first >= place] or every[-1:]
    whole = next(iter(parts.values()))[:LIMIT]
    ms = whole[-1].end - whole[0].start
    lanes = []
    for method, rounds in parts.items():
        start = rounds[0].start
        inside = [each for each in rounds if each.end - start <= ms * 1.001] or rounds[:1]
        bars = [
            bar | {"x": bar["x"] - start, "x2": min(bar["x2"] - start, ms)}
            for each in rounds
            for bar in each.bars
            if bar["x"] - start < ms
        ]
        lanes.append(
            Lane(method, start, inside, bars, len(inside) == len(rounds) and inside[-1].end - start < ms * 0.9)
        )
    return Window(name, ms, lanes)


def _rounds(rows: Sequence[queries.Row], tables: Mapping[str, pa.Table]) -> list[Round]:
    """The rounds after the prefill of one pass: of several, the first by experiment, settings and repeat.

    Raises UserError if nothing tells what a method had verified.
    """
    own = min((row["experiment"], row["settings"], row["repeat"]) for row in rows)
    rows = [row for row in rows if (row["experiment"], row["settings"], row["repeat"]) == own]
    head = rows[0]
    key = {name: head[name] for name in ("experiment", "method", "settings", "prompt_id", "repeat")}
    nodes = [row for row in tables["nodes"].to_pylist() if all(row[name] == value for name, value in key.items())]
    if not nodes and head["method"] not in queries.UNDRAFTED:
        raise UserError(f"timeline: no verified nodes of {head['method']} on {head['prompt_id']}; aggregate again")
    trees: dict[int, list[queries.Row]] = {}
    for row in nodes:
        trees.setdefault(row["round"], []).append(row)
    result, made = [], sum({row["round"]: row["emitted"] for row in rows if row["round"] < 0}.values())
    for number in sorted({row["round"] for row in rows if row["round"] >= 0}):
        phases = [row for row in rows if row["round"] == number]
        texts = (phases[0]["text"] or "").split(TOKEN_SEPARATOR)[: phases[0]["emitted"]]
        bars = [
            {"x": row["start_ms"], "x2": row["end_ms"], "y": 0, "y2": BAR, "fill": theme.PHASES[row["phase"]]}
            for row in phases
        ]
        start, end = min(row["start_ms"] for row in phases), max(row["end_ms"] for row in phases)
        accepted = min(phases[0]["accepted"], len(texts))
        result.append(Round(made, start, end, bars, texts, accepted, trees.get(number, [])))
        made += len(texts)
    if not result:
        raise UserError(f"timeline: no round of {head['method']} after its prefill")
    return result


def caption(tables: Mapping[str, pa.Table]) -> str:
    """How many tokens each method makes while the first makes its own, in every window."""
    prompt, windows = _windows(tables)
    clauses = []
    for window in windows:
        first, *others = window.lanes
        ranked = sorted(others, key=lambda lane: -lane.tokens)
        told = [f"{theme.display(lane.method)} {lane.tokens}" for lane in ranked]
        said = f"{theme.display(first.method)} makes {grammar.plural(first.tokens, 'token')}"
        clauses.append(f"{window.name}: while {said}, {grammar.joined(told)}" if told else f"{window.name}: {said}")
    parts = [f"{'. '.join(clauses)}.", "A column is a round, read downwards; faint tokens were verified and rejected."]
    return captions.short([*parts, f"One recorded pass each over prompt {prompt}."])
