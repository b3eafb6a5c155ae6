"""A panel of numbers on the colours of their values. Knows no figure."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from dynatree.figures.shared import queries, theme


def panel(
    cells: Sequence[queries.Row],
    across: tuple[Sequence[Any], str],
    down: tuple[Sequence[Any], str],
    domain: tuple[float, float],
    size: tuple[float, float],
    title: Any = "",
) -> theme.Layers:
    """The `words` of `cells` (across, down, value, words; framed, if at all) on the colours of their values.

    `across`, `down`: the values of each axis in order, and its title; `domain`: the values of the lightest and the
    darkest colour.
    """
    low, high = domain
    x = alt.X("across:O", sort=across[0], scale=alt.Scale(domain=across[0]))
    x = x.axis(title=across[1], labelAngle=0, ticks=False, domain=False)
    y = alt.Y("down:O", sort=down[0], scale=alt.Scale(domain=down[0])).axis(title=down[1], ticks=False, domain=False)
    colour = alt.Color("value:Q", scale=alt.Scale(scheme="blues", domain=[low, high]), legend=None)
    layers = [alt.Chart(queries.data(cells)).mark_rect().encode(x=x, y=y, color=colour)]
    if framed := [row for row in cells if row.get("framed")]:
        frame = alt.Chart(queries.data(framed)).mark_rect(filled=False, stroke=theme.INK, strokeWidth=2)
        layers.append(frame.encode(x=x, y=y))
    dark = [high > low and (row["value"] - low) / (high - low) > 0.55 for row in cells]
    for ink in dict.fromkeys(dark):
        words = alt.Chart(queries.data([row for row, deep in zip(cells, dark, strict=True) if deep is ink]))
        words = words.mark_text(fontSize=theme.SMALL - 1, color="white" if ink else theme.INK)
        layers.append(words.encode(x=x, y=y, text="words:N"))
    return alt.layer(*layers).properties(width=size[0], height=size[1], title=title)
