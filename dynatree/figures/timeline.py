"""One prompt on one time axis: when each method drafts, when it verifies, which tokens come out. Knows only phases."""

from collections.abc import Mapping
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import grammar, legends, queries, theme

TABLES: tuple[str, ...] = ("phases",)
SECTION = "Method"

SHOWN = ("autoregressive", "linear", "dynatree")
LIMIT = 24  # tokens after the first commit
WIDTH, CELL, BAR = 820, 14, 12
FILLS = {"draft": "#c9c9c9", "verify": "#5a5a5a", "other": "#000000"}
SEPARATOR = "\u241f"


class Lane(NamedTuple):
    """One method's rounds up to the limit: bars and tokens in ms after its first commit."""

    method: str
    bars: list[queries.Row]
    tokens: list[queries.Row]
    end: float
    rounds: int


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """One lane a method on a shared axis in ms after the first token. Raises UserError if there is no phase."""
    _, lanes = _lanes(tables)
    longest = max(lane.end for lane in lanes)
    entries = [
        ("draft", FILLS["draft"], FILLS["draft"]),
        ("verify", FILLS["verify"], FILLS["verify"]),
        ("select, cache", FILLS["other"], FILLS["other"]),
    ]
    for lane in lanes:
        if any(token["drafted"] for token in lane.tokens):
            tone = theme.colour(lane.method)
            entries.append((f"{theme.display(lane.method)}: drafted, accepted", tone, tone))
    entries.append(("target's own token", "white", theme.QUIET))
    charts = [_lane(lane, longest, lane is lanes[-1]) for lane in lanes]
    return theme.finish(alt.vconcat(legends.boxes(entries, WIDTH), *charts, spacing=8))


def _lane(lane: Lane, longest: float, last: bool) -> theme.Layers:
    tallest = max(token["place"] for token in lane.tokens) + 1
    high = tallest * CELL + BAR + 6
    tone = theme.colour(lane.method)
    tokens = []
    for token in lane.tokens:
        bottom = BAR + 4 + (token["stack"] - token["place"]) * CELL
        room = (token["x2"] - token["x"]) / longest * WIDTH - 4
        tokens.append(
            token
            | {"y": bottom, "y2": bottom - CELL + 1, "middle": bottom - CELL / 2 + 0.5}
            | {"xm": (token["x"] + token["x2"]) / 2, "words": grammar.fitting(grammar.visible(token["text"]), room, 10)}
            | {"fill": tone if token["drafted"] else "white", "stroke": "white" if token["drafted"] else tone}
            | {"ink": "white" if token["drafted"] else theme.INK}
        )
    scale = alt.Scale(domain=[0, longest], nice=False)
    upright = alt.Scale(domain=[0, high], nice=False)
    axis = alt.Axis(title="ms after the first token", grid=False, tickCount=10) if last else None
    x, y = alt.X("x:Q", scale=scale, axis=axis), alt.Y("y:Q", scale=upright, axis=None)
    title = (
        f"{theme.display(lane.method)}: {grammar.plural(len(lane.tokens), 'token')} in {grammar.number(lane.end)} ms, "
    )
    title += grammar.plural(lane.rounds, "round")
    bars = alt.Chart(queries.data(lane.bars), width=WIDTH, height=high, title=title).mark_rect(
        stroke="white", strokeWidth=0.4
    )
    cells = alt.Chart(queries.data(tokens)).mark_rect(strokeWidth=1, cornerRadius=2)
    words = alt.Chart(queries.data(tokens)).mark_text(font=theme.MONO, fontSize=10, baseline="middle")
    fill = alt.Fill("fill:N", scale=None)
    return alt.layer(
        bars.encode(x=x, x2="x2:Q", y=y, y2="y2:Q", fill=fill),
        cells.encode(x=x, x2="x2:Q", y=y, y2="y2:Q", fill=fill, stroke=alt.Stroke("stroke:N", scale=None)),
        words.encode(
            x=alt.X("xm:Q", scale=scale, axis=axis),
            y=alt.Y("middle:Q", scale=upright, axis=None),
            text="words:N",
            color=alt.Color("ink:N", scale=None),
        ),
    )


def _lanes(tables: Mapping[str, pa.Table]) -> tuple[str, list[Lane]]:
    """The prompt and its lanes: the first prompt, in name order, among those with the most of the shown methods."""
    rows = queries.rows(tables, "phases")
    shown = [row for row in rows if row["method"] in SHOWN] or rows
    methods: dict[str, set[str]] = {}
    for row in shown:
        methods.setdefault(row["prompt_id"], set()).add(row["method"])
    prompt = min(methods, key=lambda name: (-len(methods[name]), name))
    lanes = []
    for method in theme.ordered(methods[prompt]):
        own = [row for row in shown if row["prompt_id"] == prompt and row["method"] == method]
        first = min((row["experiment"] != "headline", row["experiment"], row["settings"], row["repeat"]) for row in own)
        own = [r for r in own if (r["experiment"] != "headline", r["experiment"], r["settings"], r["repeat"]) == first]
        lanes.append(_measure(method, own))
    return prompt, lanes


def _measure(method: str, rows: list[queries.Row]) -> Lane:
    start = max((row["end_ms"] for row in rows if row["round"] < 0), default=min(row["start_ms"] for row in rows))
    bars: list[queries.Row] = []
    tokens: list[queries.Row] = []
    rounds = 0
    for number in sorted({row["round"] for row in rows if row["round"] >= 0}):
        own = [row for row in rows if row["round"] == number]
        left, right = min(row["start_ms"] for row in own) - start, max(row["end_ms"] for row in own) - start
        texts = (own[0]["text"] or "").split(SEPARATOR)[: own[0]["emitted"]][: LIMIT - len(tokens)]
        for row in own:
            main = row["phase"] in FILLS
            bars.append(
                {"phase": row["phase"], "x": row["start_ms"] - start, "x2": row["end_ms"] - start, "y2": BAR}
                | {"y": 0 if main else BAR * 0.6, "fill": FILLS[row["phase"] if main else "other"]}
            )
        tokens += [
            {"text": text, "x": left, "x2": right, "drafted": place < own[0]["accepted"]}
            | {"place": place, "stack": len(texts)}
            for place, text in enumerate(texts)
        ]
        rounds += 1
        if len(tokens) >= LIMIT:
            break
    return Lane(method, bars, tokens, max((bar["x2"] for bar in bars), default=0.0), rounds)


def _lasted(lane: Lane) -> str:
    return f"{grammar.number(lane.end)} ms in {grammar.plural(lane.rounds, 'round')}"


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who emits the tokens first, how much later the others do, and where the time goes."""
    prompt, lanes = _lanes(tables)
    ranked = sorted(lanes, key=lambda lane: lane.end / len(lane.tokens))
    best = ranked[0]
    parts = [
        f"The first {grammar.plural(len(best.tokens), 'token')} after the prefill's on prompt {prompt}, instrumented, "
        "at the passes' usual pace.",
        f"{theme.display(best.method)} is quickest: {_lasted(best)}"
        + "".join(
            f"; {theme.display(lane.method)} takes {_lasted(lane)},"
            f" {grammar.number(lane.end / len(lane.tokens) / (best.end / len(best.tokens)))} times as long per token"
            for lane in ranked[1:]
        )
        + ".",
    ]
    for lane in lanes:
        drafted = sum(token["drafted"] for token in lane.tokens)
        if drafted:
            spent = sum(bar["x2"] - bar["x"] for bar in lane.bars if bar["phase"] == "draft") / lane.end
            parts.append(
                f"{theme.display(lane.method)} drafts for {grammar.number(100 * spent)} % of its time and"
                f" {drafted} of its {grammar.plural(len(lane.tokens), 'token')} were drafted."
            )
    return " ".join(
        [*parts, "A stack is read downwards; one prompt and one pass each show the mechanism, not the mean."]
    )
