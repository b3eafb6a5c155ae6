"""Speedup where greedy text loops, and where a penalty keeps it from looping. Knows only the summary."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, legends, placement, queries, theme

TABLES: tuple[str, ...] = ("summary",)
SECTION = "Speed"

WIDTH, STEP = 420, 30
EXPERIMENT = "penalised"
TEXTS = {"headline": "greedy text", EXPERIMENT: "penalised text"}
SHAPES = {"headline": "circle", EXPERIMENT: "diamond"}


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A line per method between its speedups on penalised and on greedy text. Raises UserError without both."""
    dataset, rows, repeated = _found(tables)
    methods = theme.ordered(row["method"] for row in rows)
    names = [theme.display(method) for method in methods]
    shown = [
        row
        | {"name": theme.display(row["method"]), "words": grammar.number(row["value"])}
        | {"fill": theme.colour(row["method"]) if row["significant"] else "white", "shape": SHAPES[row["experiment"]]}
        for row in rows
    ]
    lines = [
        {"name": theme.display(method), "method": method, "x": min(ends), "x2": max(ends)}
        for method in methods
        if (ends := [row["value"] for row in rows if row["method"] == method])
    ]
    largest, smallest = max(row["value"] for row in rows), min(row["value"] for row in rows)
    scale = alt.Scale(type="log", domain=[min(0.9, smallest * 0.78), max(1.2, largest * 1.25)], nice=False)
    ticks = [0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title="speedup over autoregressive decoding (×)", values=ticks))
    y = alt.Y(
        "name:N",
        sort=names,
        title=None,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(ticks=False, domain=False, labelPadding=6),
    )
    colours = alt.Color("method:N", scale=theme.colour_scale(methods), legend=None)
    free, penalised = repeated["headline"], repeated[EXPERIMENT]
    said = [_sizes(rows), f"{free:.0%} of the greedy text is repetition, {penalised:.0%} of the penalised"]
    title = alt.TitleParams(dataset, subtitle=said)
    one = alt.Chart(queries.data([{"value": 1.0}]), width=WIDTH, height=alt.Step(STEP), title=title)
    joined = alt.Chart(queries.data(lines)).mark_rule(strokeWidth=2, opacity=0.25)
    joined = joined.encode(x=alt.X("x:Q", scale=scale), x2="x2:Q", y=y, color=colours)
    base = alt.Chart(queries.data(shown)).encode(x=x, y=y)
    dots = base.mark_point(size=80, strokeWidth=2, opacity=1)
    dots = dots.encode(stroke=colours, fill=alt.Fill("fill:N", scale=None), shape=alt.Shape("shape:N", scale=None))
    labels = placement.numbers(shown, x, y, 9)
    rule = one.mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x=alt.X("value:Q", scale=scale))
    layers = [rule, joined]
    if ranged := [row for row in shown if row["low"] is not None]:
        interval = alt.Chart(queries.data(ranged)).mark_rule(strokeWidth=2)
        layers.append(interval.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=colours))
    texts = legends.shapes([(TEXTS[name], shape, theme.QUIET) for name, shape in SHAPES.items()])
    key = legends.boxes(legends.SIGNIFICANCE, WIDTH + 90)
    return theme.finish(alt.vconcat(texts, key, alt.layer(*layers, dots, *labels)))


def _found(tables: Mapping[str, pa.Table]) -> tuple[str, list[queries.Row], dict[str, float]]:
    """(data set, speedups of the methods that have both, share of repeated text in each)."""
    every = queries.rows(tables, "summary")
    penalised = [r for r in every if r["experiment"] == "penalised" and r["metric"] == "speedup"]
    if not penalised:
        raise UserError("no penalised run to compare with greedy text; see `penalised` in params.yaml")
    dataset = penalised[0]["dataset"]
    here = [row for row in every if row["dataset"] == dataset and row["experiment"] in TEXTS]
    speedups = [row for row in here if row["metric"] == "speedup" and row["method"] != queries.AUTOREGRESSIVE]
    both = [
        row
        for row in speedups
        if {other["experiment"] for other in speedups if other["method"] == row["method"]} == set(TEXTS)
    ]
    repeated = {
        row["experiment"]: row["value"]
        for row in here
        if row["metric"] == "repetition" and row["method"] == queries.AUTOREGRESSIVE
    }
    if not both or set(repeated) != set(TEXTS):
        raise UserError(f"repetition: {dataset} lacks headline or penalised runs of the same method")
    return dataset, both, repeated


def _sizes(rows: list[queries.Row]) -> str:
    """Prompts and tokens, of both texts where they differ: then length tells in their difference, too."""
    free, penalised = (captions.prompts([row for row in rows if row["experiment"] == name]) for name in TEXTS)
    return free if free == penalised else f"greedy text {free}; penalised text {penalised}"


def _told(row: queries.Row) -> str:
    return f"{grammar.interval(row)}{' (inconclusive)' * (not row['significant'])}"


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Each method's speedup with and without loops, and who is fastest without."""
    dataset, rows, repeated = _found(tables)
    value = {(row["experiment"], row["method"]): row for row in rows}
    methods = theme.ordered(row["method"] for row in rows)
    parts = [
        f"{theme.display(method)} {_told(value['headline', method])} and {_told(value[EXPERIMENT, method])}"
        for method in methods
    ]
    names = queries.labels((row["method"], row["settings"]) for row in rows)
    ranked = [row for row in rows if row["experiment"] == "penalised" and row["method"] not in queries.UNDRAFTED]
    text = (
        f"On {dataset} ({_sizes(rows)}) {repeated['headline']:.0%} of the greedy text repeats itself verbatim, "
        f"with a repetition penalty {repeated['penalised']:.0%}. Speedups on the two: {'; '.join(parts)}."
    )
    if ranked:
        text += f" With the penalty {captions.fastest(ranked, names)}."
    return f"{text} {captions.intervals(rows).capitalize()}."
