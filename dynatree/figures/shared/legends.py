"""Legends as charts of their own, above what they explain. Knows no figure."""

from collections.abc import Sequence

import altair as alt

from dynatree.figures.shared import queries, theme
from dynatree.tables import bootstrap

SIGNIFICANCE = [
    (f"significant: 95 % interval excludes 1, at least {bootstrap.MINIMUM_PROMPTS} prompts", theme.QUIET, theme.QUIET),
    ("inconclusive", "white", theme.QUIET),
]


def boxes(entries: Sequence[tuple[str, str, str]], width: float, size: float = theme.SMALL) -> alt.LayerChart:
    """A legend: (label, fill, stroke) swatches one after another, `width` pixels wide, wrapped where it must."""
    placed: list[queries.Row] = []
    x, line = 0.0, 0
    for label, fill, stroke in entries:
        wide = 18 + 0.54 * size * len(label) + 14
        if x and x + wide > width:
            x, line = 0.0, line + 1
        placed.append({"label": label, "fill": fill, "stroke": stroke, "x": x, "x2": x + 11, "t": x + 16, "line": line})
        x += wide
    for row in placed:
        row["y"], row["y2"], row["middle"] = row["line"] * 17 + 2, row["line"] * 17 + 13, row["line"] * 17 + 8
    high = (line + 1) * 17
    base = alt.Chart(queries.data(placed), width=width, height=high)
    x_scale, y_scale = alt.Scale(domain=[0, width], nice=False), alt.Scale(domain=[high, 0], nice=False)
    y = alt.Y("y:Q", axis=None, scale=y_scale)
    swatches = base.mark_rect(strokeWidth=1).encode(
        x=alt.X("x:Q", axis=None, scale=x_scale),
        x2="x2:Q",
        y=y,
        y2="y2:Q",
        fill=alt.Fill("fill:N", scale=None),
        stroke=alt.Stroke("stroke:N", scale=None),
    )
    words = base.mark_text(align="left", baseline="middle", fontSize=size, color=theme.INK).encode(
        x=alt.X("t:Q", axis=None, scale=x_scale), y=alt.Y("middle:Q", axis=None, scale=y_scale), text="label:N"
    )
    return swatches + words


def shapes(entries: Sequence[tuple[str, str, str]]) -> alt.LayerChart:
    """A legend of marks in one line: (label, shape, fill)."""
    starts = [0.0]
    for label, _, _ in entries:
        starts.append(starts[-1] + 18 + 0.54 * theme.SMALL * len(label) + 14)
    placed = [
        {"label": label, "shape": shape, "fill": fill, "x": x + 6, "t": x + 16}
        for (label, shape, fill), x in zip(entries, starts, strict=False)
    ]
    scale = alt.Scale(domain=[0, starts[-1]], nice=False)
    base = alt.Chart(queries.data(placed), width=starts[-1], height=18)
    marks = base.mark_point(size=60, opacity=1, stroke=theme.INK, strokeWidth=1.5).encode(
        x=alt.X("x:Q", axis=None, scale=scale),
        shape=alt.Shape("shape:N", scale=None),
        fill=alt.Fill("fill:N", scale=None),
    )
    words = base.mark_text(align="left", color=theme.INK).encode(x=alt.X("t:Q", axis=None, scale=scale), text="label:N")
    return marks + words
