"""Speedup by kind of text: greedy text loops, drawn and penalised text does not. Knows only the summary."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, legends, marks, placement, queries, theme

TABLES: tuple[str, ...] = ("summary", "parts", "runs")
SECTION = "Speed"
SHOWS = "texts"

WIDTH, STEP = 420, 22
HEADLINE = "headline"
# What an experiment has in common with the headline that is shown beside it.
ALIKE = ("prompt_tokens", "batch", "dtype")
_TICKS = [0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A panel per kind of text on one axis, a line per method. Raises UserError where all text is of one kind."""
    dataset, kinds = _found(tables)
    every = [row for rows, _ in kinds.values() for row in rows]
    singles = marks.singles(every, tables)
    ends = [end for r in [*every, *singles] for end in (r["low"] or r["value"], r["high"] or r["value"])]
    scale = alt.Scale(type="log", domain=[min(0.9, min(ends) * 0.85), max(1.2, max(ends) * 1.3)], nice=False)
    panels = []
    for place, (kind, (rows, repeated)) in enumerate(kinds.items()):
        said = f"{captions.prompts(rows)}, {repeated:.0%} of the tokens are in loops"
        last = place == len(kinds) - 1
        panels.append(_panel(rows, marks.singles(rows, tables), scale, alt.TitleParams(kind, subtitle=said), last))
    key = legends.boxes(legends.significance(every, singles), WIDTH + 90)
    return theme.finish(alt.vconcat(key, *panels, title=dataset))


def _panel(
    rows: list[queries.Row], singles: list[queries.Row], scale: alt.Scale, title: alt.TitleParams, labelled: bool
) -> theme.Layers:
    methods = theme.ordered(row["method"] for row in rows)
    names = [theme.display(method) for method in methods]
    shown = [
        marks.dot(row, theme.colour(row["method"]))
        | {"name": theme.display(row["method"]), "words": grammar.number(row["value"])}
        for row in rows
    ]
    words = "speedup over autoregressive decoding of the same text (×)" if labelled else None
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title=words, values=_TICKS, labels=labelled, ticks=labelled))
    y = alt.Y(
        "name:N",
        sort=names,
        title=None,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(ticks=False, domain=False, labelPadding=6, minExtent=130),
    )
    colours = alt.Color("method:N", scale=theme.colour_scale(methods), legend=None)
    one = alt.Chart(queries.data([{"value": 1.0}]), width=WIDTH, height=alt.Step(STEP), title=title)
    layers: list[alt.Chart | alt.LayerChart] = [one.mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x=x)]
    if ranged := [row for row in shown if row["low"] is not None]:
        interval = alt.Chart(queries.data(ranged)).mark_rule(strokeWidth=2)
        layers.append(interval.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=colours))
    layers.append(marks.dots(shown, x=x, y=y))
    if singles:
        layers.append(marks.small([row | {"name": theme.display(row["method"])} for row in singles], x=x, y=y))
    # Right of everything of their line.
    outer = {row["method"]: max(r["value"] for r in [*rows, *singles] if r["method"] == row["method"]) for row in rows}
    placed = [row | {"high": max(row["high"] or row["value"], outer[row["method"]])} for row in shown]
    return alt.layer(*layers, *placement.numbers(placed, x, y, 9))


def _found(tables: Mapping[str, pa.Table]) -> tuple[str, dict[str, tuple[list[queries.Row], float]]]:
    """The data set, and by kind of text the speedups of methods that draft, with the share of tokens in loops."""
    every = queries.rows(tables, "summary")
    main = [row for row in every if row["experiment"] == HEADLINE]
    alike = {tuple(row[name] for name in ALIKE) for row in main}
    usual, known = {row["kind"] for row in main}, {row["method"] for row in main}
    # Methods that an experiment has of its own are compared there.
    other = [row for row in every if row["kind"] not in usual and row["method"] in known]
    beside = [row for row in other if tuple(row[name] for name in ALIKE) in alike]
    drafting = [row for row in beside if row["metric"] == "speedup" and row["method"] not in queries.UNDRAFTED]
    if not drafting:
        raise UserError("all text is of one kind; see `sampled` and `penalised` in params.yaml")
    dataset, methods = drafting[0]["dataset"], {row["method"] for row in drafting}
    found: dict[str, tuple[list[queries.Row], float]] = {}
    for experiment in (HEADLINE, *dict.fromkeys(row["experiment"] for row in drafting)):
        here = [row for row in (*main, *beside) if (row["experiment"], row["dataset"]) == (experiment, dataset)]
        rows = [row for row in here if row["metric"] == "speedup" and row["method"] in methods]
        if rows:
            # Two experiments may have one kind.
            kind = rows[0]["kind"] if rows[0]["kind"] not in found else f"{rows[0]['kind']} ({experiment})"
            found[kind] = rows, queries.looping(tables, experiment, dataset)
    if len(found) < 2:
        raise UserError(f"repetition: {dataset} lacks runs of autoregressive decoding of a second kind of text")
    return dataset, found


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each kind of text, by how much, whether significant."""
    dataset, kinds = _found(tables)
    clauses = []
    for kind, (rows, repeated) in kinds.items():
        best = max(rows, key=lambda row: row["value"])
        given = f"{theme.display(best['method'])} {grammar.interval(best, '×')}, {captions.judged(best['significant'])}"
        clauses.append(f"{kind} ({repeated:.0%} in loops): {given if best['value'] > 1 else 'autoregressive decoding'}")
    every = [row for rows, _ in kinds.values() for row in rows]
    return captions.short([f"Fastest on {dataset} ({captions.prompts(every)}): {'; '.join(clauses)}."])
