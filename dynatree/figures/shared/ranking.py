"""A panel of the paired benchmark's table: a line per method, its mean with its interval, and its worst prompt.

Knows no figure and reads no file; looks and names are those of theme.py.
"""

from collections.abc import Sequence

import altair as alt

from dynatree.figures.shared import grammar, legends, marks, queries, theme

STEP = 22
TICK = "M0,-1V1"
KEY = [
    *legends.SIGNIFICANCE,
    legends.BASELINE,
    legends.Entry("worst prompt", theme.QUIET, theme.QUIET, TICK, 110),
]
_TICKS = [0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]
_FINE = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2]
_NARROW = 2.6  # times its low end: an axis that is fine enough for the finer ticks


def scale(rows: Sequence[queries.Row], room: float = 1.35) -> alt.Scale:
    """A logarithmic axis for `rows` of the table, and `room` for words right of the last."""
    ends = [value for row in rows for value in (row["worst"], row["high"] or row["value"])]
    return alt.Scale(type="log", domain=[min(0.8, min(ends) * 0.9), max(1.3, max(ends) * room)], nice=False)


def panel(
    rows: Sequence[queries.Row],
    methods: Sequence[str],
    axis: tuple[str, alt.Scale],
    width: int,
    labelled: bool = True,
) -> theme.Layers:
    """`rows`, one a method, with their `words`, in the order of `methods`; `axis`: its title and its scale.

    Above them stands their kind of text, by its name and by how tokens were chosen. What a dot says: marks.py; methods
    are named at the left if `labelled`.
    """
    text, kind = rows[0]["text"], rows[0]["kind"]
    said = [*([kind] if kind != text else []), grammar.plural(rows[0]["prompts"], "prompt")]
    title = alt.TitleParams(text, subtitle="; ".join(said))
    names = [theme.display(method) for method in methods]
    here = [
        marks.dot(
            row | {"significant": None if row["method"] == row["baseline"] else row["significant"]},
            theme.colour(row["method"]),
        )
        | {"name": theme.display(row["method"]), "end": row["high"] or row["value"]}
        for row in rows
    ]
    y = alt.Y(
        "name:N",
        sort=names,
        title=None,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(ticks=False, domain=False, labels=labelled, labelPadding=6),
    )
    low, high = axis[1].domain
    ticks = [tick for tick in (_FINE if high < _NARROW * low else _TICKS) if low <= tick <= high]
    x = alt.X("value:Q", scale=axis[1], axis=alt.Axis(title=axis[0], values=ticks, format="~g", labelOverlap="greedy"))
    colour = alt.Color("method:N", scale=theme.colour_scale(methods), legend=None)
    base = alt.Chart(queries.data(here), width=width, height=alt.Step(STEP), title=title).encode(y=y)
    one = alt.Chart(queries.data([{"value": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x=x)
    layers = [
        one,
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=axis[1]), x2="high:Q", color=colour),
        marks.dots(here, x=x, y=y),
        base.mark_tick(thickness=2, size=11).encode(x=alt.X("worst:Q", scale=axis[1]), color=colour),
        theme.on_white(base.encode(x=alt.X("end:Q", scale=axis[1]), text="words:N"), 7),
    ]
    return alt.layer(*layers)
