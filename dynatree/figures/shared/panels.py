"""Panels that several figures share: lines with intervals and direct labels, heat maps, which rows stand where.

Knows no figure and reads no file; looks and names are those of theme.py.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import theme
from dynatree.tables import bootstrap

BASELINE = "autoregressive"
# Plain decoding under other names: what others are measured by.
AGAIN = "autoregressive_again"
PLAIN = (BASELINE, AGAIN, "transformers")
RESOLVED = [
    (f"resolved: 95 % interval excludes 1, {bootstrap.MINIMUM_PROMPTS} prompts or more", theme.QUIET, theme.QUIET),
    ("not resolved", "white", theme.QUIET),
]
# Where on an axis of an output's percents the parts of the tables stand.
QUARTERS = {f"quarter {number}": 25 * number - 12.5 for number in (1, 2, 3, 4)}
LINE = 13.0  # pixels a label of a line
MARGIN = 1.15  # of an axis of lengths, beyond its first and last
DODGE, LEADER = 3.0, 8.0  # pixels between the dots of two lines, and from a panel to its labels
# Which round of which run a node's tree was verified in.
_TREE = ("method", "settings", "dataset", "prompt_id", "repeat", "round")


def places(rows: Sequence[theme.Row], *columns: str) -> list[tuple[str, list[theme.Row]]]:
    """Rows by where they were measured, titled by the data set and by what else differs among `columns`."""
    keys = sorted({(row["dataset"], *(row[column] for column in columns)) for row in rows})
    result = []
    for key in keys:
        here = [row for row in rows if (row["dataset"], *(row[column] for column in columns)) == key]
        title = [key[0]]
        for place, column in enumerate(columns, 1):
            if len({other[place] for other in keys}) > 1:
                title.append(f"{column.replace('_', ' ')} {key[place]}")
        result.append((", ".join(title), here))
    return result


def along(
    tables: Mapping[str, pa.Table], experiment: str, metrics: Iterable[str], column: str
) -> dict[str, list[theme.Row]]:
    """Of an experiment the rows of `summary` of each metric, with `x` (of `column`) and `label`, in drawing order.

    Plain decoding's speedup is 1 and no line. Raises UserError without such rows.
    """
    every = {metric: theme.rows(tables, "summary", experiment=experiment, metric=metric) for metric in metrics}
    names = theme.labels((row["method"], row["settings"]) for rows in every.values() for row in rows)
    order = list(names)
    return {
        metric: [
            row | {"x": row[column], "label": names[row["method"], row["settings"]]}
            for row in sorted(rows, key=lambda row: (order.index((row["method"], row["settings"])), row[column]))
            if row["value"] is not None and (metric, row["method"]) != ("speedup", BASELINE)
        ]
        for metric, rows in every.items()
    }


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


def values(title: str, rows: Sequence[theme.Row], one: bool = False, log: bool = False) -> Values:
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


def beside(points: Sequence[theme.Row], ticks: Sequence[float], width: float) -> list[theme.Row]:
    """Points moved on the axis of `lengths`, DODGE pixels from label to label, so that intervals stand side by side."""
    pixel = math.log(ticks[-1] / ticks[0] * MARGIN**2) / width
    series = list(dict.fromkeys(row["label"] for row in points))
    moves = {label: pixel * DODGE * (place - (len(series) - 1) / 2) for place, label in enumerate(series)}
    return [row | {"x": row["x"] * math.exp(moves[row["label"]])} for row in points]


def lines(
    points: Sequence[theme.Row],
    x: alt.X,
    axis: Values,
    size: tuple[float, float],
    title: Any = "",
    one: bool = False,
    labelled: bool = True,
    steady: Sequence[theme.Row] = (),
) -> theme.Layers:
    """A line per `label` of `points` (label, method, x, value, low, high, resolved), named at its end if `labelled`.

    `x` encodes the field `x`; `size` is width and height in pixels. `steady`: rows drawn as level lines with their
    intervals. `one`: a dashed line at 1. Hollow dots: `resolved` is False.
    """
    layers: list[Any] = []
    if one:
        rule = alt.Chart(theme.data([{"value": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3])
        layers.append(rule.encode(y=axis.y))
    tone = alt.Color("tone:N", scale=None)
    if bands := _intervals(steady):
        layers.append(alt.Chart(theme.data(bands)).mark_rect(opacity=0.13).encode(y=axis.y, y2="high:Q", color=tone))
    if steady:
        level = alt.Chart(theme.data([{"value": row["value"], "tone": theme.colour(row["method"])} for row in steady]))
        layers.append(level.mark_rule(strokeWidth=2).encode(y=axis.y, color=tone))
    shown = [
        row
        | {
            "tone": theme.colour(row["method"]),
            "fill": "white" if row["resolved"] is False else theme.colour(row["method"]),
        }
        for row in points
    ]
    for label in dict.fromkeys(row["label"] for row in shown):
        # A layer each: beside an ordinal axis, one path by a colour without a scale comes out empty.
        own = [row for row in shown if row["label"] == label]
        path = alt.Chart(theme.data(own)).mark_line(strokeWidth=2, color=own[0]["tone"])
        layers.append(path.encode(x=x, y=axis.y))
    if ranged := _intervals(points):
        layers.append(
            alt.Chart(theme.data(ranged)).mark_rule(strokeWidth=1.5).encode(x=x, y=axis.y, y2="high:Q", color=tone)
        )
    dots = alt.Chart(theme.data(shown)).mark_point(strokeWidth=1.5, size=42, opacity=1).encode(x=x, y=axis.y)
    layers.append(dots.encode(stroke=alt.Stroke("tone:N", scale=None), fill=alt.Fill("fill:N", scale=None)))
    if labelled:
        layers += _labels(points, x, axis, size)
    return alt.layer(*layers).properties(width=size[0], height=size[1], title=title)


def _intervals(rows: Sequence[theme.Row]) -> list[theme.Row]:
    """From `value`, the lower end, to `high`, of the rows that have an interval."""
    return [
        {"x": row.get("x"), "value": row["low"], "high": row["high"], "tone": theme.colour(row["method"])}
        for row in rows
        if row["low"] is not None
    ]


def _labels(points: Sequence[theme.Row], x: alt.X, axis: Values, size: tuple[float, float]) -> list[alt.Chart]:
    """Names beside the panel, as high as the lines end but never on one another, each led to by its line."""
    width, height = size
    series = dict.fromkeys(row["label"] for row in points)
    ends = [max((row for row in points if row["label"] == label), key=lambda row: row["x"]) for label in series]
    pixels = apart([height * axis.share(end["value"]) for end in ends], LINE)
    places = [
        {"x": end["x"], "value": end["value"], "high": axis.at(pixel / height), "label": end["label"]}
        | {"tone": theme.colour(end["method"])}
        for end, pixel in zip(ends, pixels, strict=True)
    ]
    leaders = alt.Chart(theme.data(places)).mark_rule(opacity=0.6)
    leaders = leaders.encode(
        x=x, x2=alt.value(width + LEADER), y=axis.y, y2="high:Q", color=alt.Color("tone:N", scale=None)
    )
    words = alt.Chart(theme.data([{"value": place["high"], "label": place["label"]} for place in places]))
    words = words.mark_text(align="left", color=theme.INK)
    return [leaders, words.encode(x=alt.value(width + LEADER + 3), y=axis.y, text="label:N")]


def heat(
    cells: Sequence[theme.Row],
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
    layers = [alt.Chart(theme.data(cells)).mark_rect().encode(x=x, y=y, color=colour)]
    if framed := [row for row in cells if row.get("framed")]:
        frame = alt.Chart(theme.data(framed)).mark_rect(filled=False, stroke=theme.INK, strokeWidth=2)
        layers.append(frame.encode(x=x, y=y))
    dark = [high > low and (row["value"] - low) / (high - low) > 0.55 for row in cells]
    for ink in dict.fromkeys(dark):
        words = alt.Chart(theme.data([row for row, deep in zip(cells, dark, strict=True) if deep is ink]))
        words = words.mark_text(fontSize=theme.SMALL - 1, color="white" if ink else theme.INK)
        layers.append(words.encode(x=x, y=y, text="words:N"))
    return alt.layer(*layers).properties(width=size[0], height=size[1], title=title)


def tested(tables: Mapping[str, pa.Table]) -> dict[str, list[tuple[theme.Row, theme.Row]]]:
    """By method of the headline, in drawing order: the `nodes` that were put to the test, each with its parent.

    Those are the nodes below an accepted one: all others are rejected with what they hang from.
    """
    rows = theme.rows(tables, "nodes", experiment="headline")
    place = {tuple(row[name] for name in (*_TREE, "node")): row for row in rows}
    found: dict[str, list[tuple[theme.Row, theme.Row]]] = {}
    for method in theme.ordered(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and row["parent"] >= 0 and row["hit"] is not None]
        found[method] = [(row, place[(*(row[name] for name in _TREE), row["parent"])]) for row in own]
    return found


def numbers(
    rows: Sequence[theme.Row], x: alt.X, y: alt.Y, dx: float, group: str = "name", value: str = "value"
) -> list[alt.LayerChart]:
    """The `words` of `rows` beside their dots and intervals: of each `group` the largest to the right, others left.

    Dots of one line may be close.
    """
    largest = {row[group]: max(r[value] for r in rows if r[group] == row[group]) for row in rows}
    layers = []
    for end, way in (("high", dx), ("low", -dx)):
        own = [row for row in rows if (row[value] == largest[row[group]]) == (end == "high")]
        placed = [row | {value: row.get(end) or row[value]} for row in own]
        if placed:
            layers.append(theme.words(alt.Chart(theme.data(placed)).encode(x=x, y=y, text="words:N"), way))
    return layers


def apart(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved as little as keeps them at least `gap` apart and in order; those that collide share the move."""
    order = sorted(range(len(positions)), key=lambda place: positions[place])
    groups: list[list[int]] = []
    centres: list[float] = []
    for place in order:
        groups.append([place])
        centres.append(positions[place])
        while len(groups) > 1 and centres[-1] - centres[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            groups[-2:] = [groups[-2] + groups[-1]]
            centres[-2:] = [sum(positions[member] for member in groups[-1]) / len(groups[-1])]
    result = [0.0] * len(positions)
    for group, centre in zip(groups, centres, strict=True):
        for rank, member in enumerate(group):
            result[member] = centre + gap * (rank - (len(group) - 1) / 2)
    return result
