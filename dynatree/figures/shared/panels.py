"""A panel of lines with intervals and direct labels. Knows no figure and reads no file."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from dynatree.figures.shared import marks, placement, queries, theme
from dynatree.figures.shared.axes import Values


def lines(
    points: Sequence[queries.Row],
    x: alt.X,
    axis: Values,
    size: tuple[float, float],
    title: Any = "",
    one: bool = False,
    labelled: bool = True,
    steady: Sequence[queries.Row] = (),
    singles: Sequence[queries.Row] = (),
) -> theme.Layers:
    """A line per `label` of `points` (label, method, x, value, low, high, significant), named at its end if `labelled`.

    `x` encodes the field `x`; `size` is width and height in pixels. `steady`: rows drawn as level lines with their
    intervals; `singles`: values of single prompts. `one`: a dashed line at 1. What a dot says: marks.py.
    """
    layers: list[Any] = []
    if one:
        rule = alt.Chart(queries.data([{"value": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3])
        layers.append(rule.encode(y=axis.y))
    tone = alt.Color("tone:N", scale=None)
    if bands := _intervals(steady):
        layers.append(alt.Chart(queries.data(bands)).mark_rect(opacity=0.13).encode(y=axis.y, y2="high:Q", color=tone))
    if steady:
        level = alt.Chart(queries.data([row | {"tone": theme.colour(row["method"])} for row in steady]))
        layers.append(level.mark_rule(strokeWidth=2).encode(y=axis.y, color=tone))
    shown = [marks.dot(row, theme.colour(row["method"])) for row in points]
    for label in dict.fromkeys(row["label"] for row in shown):
        # A layer each: beside an ordinal axis, one path by a colour without a scale comes out empty.
        own = [row for row in shown if row["label"] == label]
        path = alt.Chart(queries.data(own)).mark_line(strokeWidth=2, color=own[0]["tone"])
        layers.append(path.encode(x=x, y=axis.y))
    if ranged := _intervals(points):
        layers.append(
            alt.Chart(queries.data(ranged)).mark_rule(strokeWidth=1.5).encode(x=x, y=axis.y, y2="high:Q", color=tone)
        )
    layers.append(marks.dots(shown, x=x, y=axis.y))
    if singles:
        layers.append(marks.small(singles, x=x, y=axis.y))
    if labelled:
        layers += placement.names(points, x, axis, size)
    return alt.layer(*layers).properties(width=size[0], height=size[1], title=title)


def _intervals(rows: Sequence[queries.Row]) -> list[queries.Row]:
    """From `value`, the lower end, to `high`, of the rows that have an interval."""
    return [
        {"x": row.get("x"), "value": row["low"], "high": row["high"]}
        | {"method": row["method"], "tone": theme.colour(row["method"])}
        for row in rows
        if row["low"] is not None
    ]
