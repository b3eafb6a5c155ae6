"""Time to the first token, time per token and throughput of every method. Knows no run, only the summary."""

from collections.abc import Mapping
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import captions, grammar, queries, theme

TABLES: tuple[str, ...] = ("summary",)
SECTION = "Speed"

STEP, WIDTH = 22, 190


class Metric(NamedTuple):
    """A panel: its title, the unit, and whether more is better."""

    title: str
    unit: str
    better: int


METRICS = {
    "ttft_ms": Metric("Time to the first token", "ms", -1),
    "tpot_ms": Metric("Time per later token", "ms", -1),
    "throughput": Metric("Throughput", "tokens/s", 1),
}


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row per method, a panel per metric, for each data set. Raises UserError if there is no headline row."""
    found = _found(tables)
    every = [row for rows in found.values() for row in rows]
    names = queries.labels((row["method"], row["settings"]) for row in every)
    places = queries.places(every)
    lines = []
    for title, here in places:
        shown = {metric: [row for row in here if row["metric"] == metric] for metric in METRICS}
        charts = [
            _panel(rows, found[metric], names, METRICS[metric], place == 0, title == places[-1][0])
            for place, (metric, rows) in enumerate((m, r) for m, r in shown.items() if r)
        ]
        lines.append(alt.hconcat(*charts, title=f"{title} ({captions.prompts(here)})", spacing=22))
    return theme.finish(alt.vconcat(*lines, spacing=20))


def _panel(
    here: list[queries.Row],
    everywhere: list[queries.Row],
    names: dict[tuple[str, str], str],
    metric: Metric,
    first: bool,
    last: bool,
) -> theme.Layers:
    shown = [
        row
        | {"label": names[row["method"], row["settings"]], "words": grammar.number(row["value"])}
        | {"end": max(row["value"], row["high"] or 0.0), "zero": 0.0}
        for row in here
    ]
    highest = max(max(row["value"], row["high"] or 0.0) for row in everywhere)
    scale = alt.Scale(domain=[0, highest * 1.25], nice=False)
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title=metric.unit if last else None, tickCount=4))
    y = alt.Y(
        "label:N",
        title=None,
        scale=alt.Scale(domain=list(names.values())),
        axis=alt.Axis(ticks=False, domain=False, labels=first, labelPadding=6),
    )
    colour = alt.Color("method:N", scale=theme.colour_scale(method for method, _ in names), legend=None)
    words = f"{metric.title.lower()}, {'more' if metric.better > 0 else 'less'} is better"
    title = alt.TitleParams(words, frame="group", fontSize=theme.SMALL, fontWeight="normal")
    base = alt.Chart(queries.data(shown), width=WIDTH, height=alt.Step(STEP), title=title).encode(y=y)
    stems = base.mark_rule(strokeWidth=1, color=theme.FAINT).encode(x=alt.X("zero:Q", scale=scale), x2="value:Q")
    layers = [stems, base.mark_point(filled=True, size=60, opacity=1).encode(x=x, color=colour)]
    ranged = [row for row in shown if row["low"] is not None]
    if ranged:
        interval = alt.Chart(queries.data(ranged)).mark_rule(strokeWidth=2)
        layers.append(interval.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=colour))
    text = base.mark_text(align="left", dx=7, color=theme.INK)
    return alt.layer(*layers, text.encode(x=alt.X("end:Q", scale=scale), text="words:N"))


def _found(tables: Mapping[str, pa.Table]) -> dict[str, list[queries.Row]]:
    """Rows of each metric that have a value."""
    found = {metric: queries.rows(tables, "summary", experiment="headline", metric=metric) for metric in METRICS}
    return {metric: [row for row in rows if row["value"] is not None] for metric, rows in found.items()}


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest altogether, after the first token and until it, and the next one's distance."""
    found = _found(tables)
    names = queries.labels((row["method"], row["settings"]) for rows in found.values() for row in rows)
    lists = []
    for title, here in queries.places([row for rows in found.values() for row in rows]):
        sentences = []
        for metric, (what, unit, better) in reversed(METRICS.items()):
            rows = [row for row in here if row["metric"] == metric]
            if rows:
                sentences.append(f"On {title}, {what.lower()}: {_ranked(rows, names, unit, better)}.")
        lists.append(sentences)
    return captions.short(captions.in_turn(lists))


def _ranked(rows: list[queries.Row], names: Mapping[tuple[str, str], str], unit: str, better: int) -> str:
    """The best with its interval, the next and how far off it is."""
    ranked = sorted(rows, key=lambda row: (-better * row["value"], row["method"], row["settings"]))
    best = ranked[0]
    text = f"{names[best['method'], best['settings']]} {grammar.interval(best)} {unit}"
    if len(ranked) > 1:
        second = ranked[1]
        name, distance = names[second["method"], second["settings"]], abs(second["value"] / best["value"] - 1)
        text += f", next {name}, {distance:.0%} {'below' if better > 0 else 'above'}"
    return text
