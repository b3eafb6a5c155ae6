"""A panel of numbers on tones that say no more than the numbers do. Knows no figure."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from dynatree.figures.shared import queries, theme

NEUTRAL, APART = "#f1f1f1", "#b9c6d3"
_PALE, _DEEP = (246, 248, 250), (140, 172, 200)  # light enough for dark words


def shade(share: float) -> str:
    """The tone of a share 0..1 of the whole, on which dark words can be read."""
    mixed = (round(low + share * (high - low)) for low, high in zip(_PALE, _DEEP, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def panel(
    cells: Sequence[queries.Row],
    across: tuple[Sequence[Any], str],
    down: tuple[Sequence[Any], str],
    size: tuple[float, float],
    title: Any = "",
) -> theme.Layers:
    """The `words` of `cells` (across, down, words, tone; and small beneath them `below`, if at all) on their tones.

    `across`, `down`: the values of each axis in order, and its title.
    """
    x = alt.X("across:O", sort=across[0], scale=alt.Scale(domain=across[0]))
    x = x.axis(title=across[1], labelAngle=0, ticks=False, domain=False)
    y = alt.Y("down:O", sort=down[0], scale=alt.Scale(domain=down[0])).axis(title=down[1], ticks=False, domain=False)
    base = alt.Chart(queries.data(cells)).encode(x=x, y=y)
    layers = [base.mark_rect(stroke="white", strokeWidth=2).encode(fill=alt.Fill("tone:N", scale=None))]
    small = any(row.get("below") for row in cells)
    layers.append(base.mark_text(color=theme.INK, dy=-6 if small else 0).encode(text="words:N"))
    if small:
        layers.append(base.mark_text(color=theme.INK, dy=8, fontSize=theme.SMALL - 2).encode(text="below:N"))
    return alt.layer(*layers).properties(width=size[0], height=size[1], title=title)
