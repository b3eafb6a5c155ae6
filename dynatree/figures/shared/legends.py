"""Legends as charts of their own, above what they explain. Knows no figure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from dynatree.figures.shared import marks, queries, theme
from dynatree.tables import bootstrap


class Entry(NamedTuple):
    """What a mark means: its words, its colours, its shape and its size."""

    label: str
    fill: str
    stroke: str
    shape: str = "square"
    size: float = 110


SIGNIFICANCE = [
    Entry(
        f"significant: 95 % interval excludes 1, n ≥ {bootstrap.MINIMUM_PROMPTS}",
        theme.QUIET,
        theme.QUIET,
        "circle",
        marks.COMPARED,
    ),
    Entry("inconclusive: could be chance", "white", theme.QUIET, "circle", marks.COMPARED),
]
PLAIN = Entry("no comparison", theme.QUIET, theme.QUIET, "circle", marks.PLAIN)
BASELINE = PLAIN._replace(label="baseline")
SINGLE = Entry("one prompt", theme.QUIET, theme.QUIET, "circle", marks.SINGLE / 2)
TOGETHER = SINGLE._replace(label="one prompt, or one batch")


def significance(rows: Sequence[queries.Row], singles: Sequence[queries.Row] = ()) -> list[Entry]:
    """What the dots of `rows` say, with those of single prompts where there are any."""
    compared = {row["significant"] for row in rows}
    return [
        *(SIGNIFICANCE if compared - {None} else []),
        *([PLAIN] if None in compared else []),
        *([TOGETHER if any(row.get("batch", 1) > 1 for row in singles) else SINGLE] if singles else []),
    ]


def boxes(entries: Sequence[tuple[str, str, str] | Entry], width: float, size: float = theme.SMALL) -> alt.LayerChart:
    """A legend: (label, fill, stroke) swatches, or entries, one after another, `width` pixels wide, wrapped."""
    placed: list[queries.Row] = []
    x, line = 0.0, 0
    for entry in (Entry(*entry) for entry in entries):
        radius = math.sqrt(entry.size / math.pi)
        wide = 12 + 2 * radius + 0.54 * size * len(entry.label) + 14
        if x and x + wide > width:
            x, line = 0.0, line + 1
        placed.append(entry._asdict() | {"x": x + radius, "t": x + 2 * radius + 5, "y": line * 17 + 8})
        x += wide
    high = (line + 1) * 17
    base = alt.Chart(queries.data(placed), width=width, height=high)
    scale = alt.Scale(domain=[0, width], nice=False)
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[high, 0], nice=False))
    swatches = base.mark_point(strokeWidth=1.5, opacity=1).encode(
        x=alt.X("x:Q", axis=None, scale=scale),
        y=y,
        fill=alt.Fill("fill:N", scale=None),
        stroke=alt.Stroke("stroke:N", scale=None),
        shape=alt.Shape("shape:N", scale=None),
        size=alt.Size("size:Q", scale=None),
    )
    words = base.mark_text(align="left", baseline="middle", fontSize=size, color=theme.INK).encode(
        x=alt.X("t:Q", axis=None, scale=scale), y=y, text="label:N"
    )
    return swatches + words


def shapes(entries: Sequence[tuple[str, str, str]], width: float = 400) -> alt.LayerChart:
    """A legend of marks: (label, shape, fill)."""
    return boxes([Entry(label, fill, theme.INK, shape, 60) for label, shape, fill in entries], width)
