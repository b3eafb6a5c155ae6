"""Axes that figures share: of values, of lengths, of percents of an output. Knows no figure."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from dynatree.figures.shared.queries import Row

# Where on an axis of an output's percents the parts of the tables lie.
QUARTERS = {f"quarter {number}": 25 * number - 12.5 for number in (1, 2, 3, 4)}
MARGIN = 1.15  # of an axis of lengths, beyond its first and last
DODGE = 3.0  # pixels between the dots of two lines


class Values(NamedTuple):
    """The vertical axis of a panel."""

    title: str
    low: float
    high: float
    log: bool

    @property
    def y(self) -> alt.Y:
        """Encodes the field `value`."""
        scale = alt.Scale(type="log" if self.log else "linear", domain=[self.low, self.high], nice=False)
        axis: dict[str, Any] = {"tickCount": 5}
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
            ticks = [first * 10.0**decade for decade in decades for first in (1, 2, 3, 5, 7)]
            axis = {"values": [tick for tick in ticks if self.low <= tick <= self.high], "labelOverlap": False}
        return alt.Y("value:Q", scale=scale, axis=alt.Axis(title=self.title, **axis))

    def share(self, value: float) -> float:
        """How far up the axis the value is, 0..1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, share: float) -> float:
        """The value at a share of the axis; the inverse of `share`."""
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + share * (self.high - self.low)


def values(title: str, rows: Sequence[Row], one: bool = False, log: bool = False) -> Values:
    """An axis that holds every value and interval, and 1 if `one`, with a margin."""
    ends = [v for row in rows for v in (row["value"], row["low"], row["high"]) if v is not None] + [1.0] * one
    low, high = min(ends), max(ends)
    if log:
        return Values(title, low / 1.2, high * 1.2, log)
    margin = (high - low) * 0.07 or 0.1 * abs(high) or 0.1
    return Values(title, low - margin, high + margin, log)


def percents() -> alt.X:
    """Encodes the field `x`, percent of an output, such as the values of QUARTERS."""
    axis = alt.Axis(title="percent of the output", values=[0, 25, 50, 75, 100])
    return alt.X("x:Q", scale=alt.Scale(domain=[0, 100], nice=False), axis=axis)


def lengths(title: str, ticks: Sequence[float]) -> alt.X:
    """Encodes the field `x` on a logarithmic axis with ascending `ticks`."""
    scale = alt.Scale(type="log", domain=[ticks[0] / MARGIN, ticks[-1] * MARGIN], nice=False)
    return alt.X("x:Q", scale=scale, axis=alt.Axis(title=title, values=list(ticks), format=","))


def beside(points: Sequence[Row], ticks: Sequence[float], width: float) -> list[Row]:
    """Points moved on the axis of `lengths`, DODGE pixels from label to label, so that intervals lie side by side.

    Where they were is their `at`.
    """
    pixel = math.log(ticks[-1] / ticks[0] * MARGIN**2) / width
    series = list(dict.fromkeys(row["label"] for row in points))
    moves = {label: pixel * DODGE * (place - (len(series) - 1) / 2) for place, label in enumerate(series)}
    return [row | {"at": row["x"], "x": row["x"] * math.exp(moves[row["label"]])} for row in points]
