"""What a dot says, in every figure: filled where a difference from 1 is significant, hollow where it could be chance,
small where nothing is compared, smallest for one prompt. Knows no figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import queries, theme
from dynatree.tables import bootstrap

COMPARED, PLAIN, SINGLE = 60, 26, 12  # square pixels


def dot(row: queries.Row, tone: str) -> queries.Row:
    """The row with `tone`, `fill` and `size` of its dot, by its `significant`: None where nothing is compared."""
    hollow, plain = row["significant"] is False, row["significant"] is None
    return row | {"tone": tone, "fill": "white" if hollow else tone, "size": PLAIN if plain else COMPARED}


def dots(rows: Sequence[queries.Row], **encoded: Any) -> alt.Chart:
    """The dots of `rows` (as `dot` gives them), placed by the encodings given."""
    chart = alt.Chart(queries.data(rows)).mark_point(strokeWidth=2, opacity=1)
    return chart.encode(
        **encoded,
        stroke=alt.Stroke("tone:N", scale=None),
        fill=alt.Fill("fill:N", scale=None),
        size=alt.Size("size:Q", scale=None),
    )


def singles(rows: Sequence[queries.Row], tables: Mapping[str, pa.Table]) -> list[queries.Row]:
    """Beside rows of `summary` of fewer than MINIMUM_PROMPTS prompts: a row with the value of each of its runs."""
    few = [row for row in rows if row["prompts"] < bootstrap.MINIMUM_PROMPTS]
    wanted = {row["experiment"] for row in few}
    runs = [run for run in tables["runs"].to_pylist() if run["experiment"] in wanted]
    return [
        row | {"value": run[row["metric"]], "low": None, "high": None}
        for row in few
        for run in runs
        if run[row["metric"]] is not None and all(run[name] == row[name] for name in queries.SAME)
    ]


def small(rows: Sequence[queries.Row], **encoded: Any) -> alt.Chart:
    """The dots of single prompts, in their `tone`, or in their methods' colours."""
    shown = [{"tone": theme.colour(row["method"]), **row} for row in rows]
    chart = alt.Chart(queries.data(shown)).mark_point(filled=True, size=SINGLE, opacity=0.6)
    return chart.encode(**encoded, color=alt.Color("tone:N", scale=None))
