"""Words beside what they name, never on one another. Knows no figure."""

from collections.abc import Sequence

import altair as alt

from dynatree.figures.shared import queries, theme
from dynatree.figures.shared.axes import Values

LINE = 13.0  # pixels a label of a line
LEADER = 8.0  # pixels from a panel to its labels


def numbers(
    rows: Sequence[queries.Row], x: alt.X, y: alt.Y, dx: float, group: str = "name", value: str = "value"
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
            layers.append(theme.on_white(alt.Chart(queries.data(placed)).encode(x=x, y=y, text="words:N"), way))
    return layers


def names(points: Sequence[queries.Row], x: alt.X, axis: Values, size: tuple[float, float]) -> list[alt.Chart]:
    """Names beside the panel, as high as the lines end but never on one another, each led to by its line."""
    width, height = size
    series = dict.fromkeys(row["label"] for row in points)
    ends = [max((row for row in points if row["label"] == label), key=lambda row: row["x"]) for label in series]
    pixels = apart([height * axis.share(end["value"]) for end in ends], LINE)
    places = [
        {"x": end["x"], "value": end["value"], "high": axis.at(pixel / height), "label": end["label"]}
        | {"method": end["method"], "tone": theme.colour(end["method"])}
        for end, pixel in zip(ends, pixels, strict=True)
    ]
    leaders = alt.Chart(queries.data(places)).mark_rule(opacity=0.6)
    leaders = leaders.encode(
        x=x, x2=alt.value(width + LEADER), y=axis.y, y2="high:Q", color=alt.Color("tone:N", scale=None)
    )
    named = [{"value": place["high"], "label": place["label"], "method": place["method"]} for place in places]
    words = alt.Chart(queries.data(named))
    words = words.mark_text(align="left", color=theme.INK)
    return [leaders, words.encode(x=alt.value(width + LEADER + 3), y=axis.y, text="label:N")]


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
