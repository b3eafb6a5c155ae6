"""A panel of the paired benchmark's table: a line per method, its mean with its interval, and its worst prompt.

Knows no figure and reads no file; looks and names are those of theme.py.
"""

from collections.abc import Sequence

import altair as alt

from dynatree.figures.shared import legends, queries, theme

STEP = 22
KEY = [*legends.SIGNIFICANCE, ("tick: worst prompt", "white", "white")]
_TICKS = [0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]


def scale(rows: Sequence[queries.Row], room: float = 1.35) -> alt.Scale:
    """A logarithmic axis for `rows` of the table, and `room` for words right of the last."""
    ends = [value for row in rows for value in (row["worst"], row["high"] or row["value"])]
    return alt.Scale(type="log", domain=[min(0.8, min(ends) * 0.9), max(1.3, max(ends) * room)], nice=False)


def panel(
    rows: Sequence[queries.Row],
    methods: Sequence[str],
    axis: tuple[str, alt.Scale],
    width: int,
    title: alt.TitleParams,
    labelled: bool = True,
) -> theme.Layers:
    """`rows`, one a method, with their `words`, in the order of `methods`; `axis`: its title and its scale.

    A dot is filled where its row is significant or the baseline's own; methods are named at the left if `labelled`.
    """
    names = [theme.display(method) for method in methods]
    here = [
        row
        | {"name": theme.display(row["method"]), "end": row["high"] or row["value"]}
        | {"fill": theme.colour(row["method"]) if row["significant"] or row["method"] == row["baseline"] else "white"}
        for row in rows
    ]
    y = alt.Y(
        "name:N",
        sort=names,
        title=None,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(ticks=False, domain=False, labels=labelled, labelPadding=6),
    )
    x = alt.X("value:Q", scale=axis[1], axis=alt.Axis(title=axis[0], values=_TICKS))
    colour = alt.Color("method:N", scale=theme.colour_scale(methods), legend=None)
    stroke = alt.Stroke("method:N", scale=theme.colour_scale(methods), legend=None)
    base = alt.Chart(queries.data(here), width=width, height=alt.Step(STEP), title=title).encode(y=y)
    one = alt.Chart(queries.data([{"value": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x=x)
    layers = [
        one,
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=axis[1]), x2="high:Q", color=colour),
        base.mark_point(size=70, strokeWidth=2, opacity=1).encode(
            x=x, stroke=stroke, fill=alt.Fill("fill:N", scale=None)
        ),
        base.mark_tick(thickness=2, size=11).encode(x=alt.X("worst:Q", scale=axis[1]), color=colour),
        theme.on_white(base.encode(x=alt.X("end:Q", scale=axis[1]), text="words:N"), 7),
    ]
    return alt.layer(*layers)
