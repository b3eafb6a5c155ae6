"""Throughput of whole batches against their size, and where speculation stops to pay.

Knows only the summary.
"""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import axes, captions, grammar, legends, marks, panels, queries, theme

TABLES: tuple[str, ...] = ("summary", "runs")
SECTION = "Speed"

EXPERIMENT = "batch_size"
APART = ("prompt_tokens", "dtype")  # what an experiment may vary besides
METRICS = {
    "throughput": "tokens/s of the whole batch",
    "speedup": "speedup at that size (×)",
}
SIZE = (200, 180)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row per data set: throughput, speedup. Raises UserError without the experiment."""
    found = _found(tables)
    every = [row for rows in found.values() for row in rows]
    sizes = sorted({row["x"] for row in every})
    x = alt.X(
        "x:Q",
        scale=alt.Scale(type="log", base=2, domain=[sizes[0] / 1.15, sizes[-1] * 1.15], nice=False),
        axis=alt.Axis(title="requests decoded together", values=sizes, format=","),
    )
    lines: list[alt.HConcatChart] = []
    singles: list[queries.Row] = []
    for title, here in queries.places(every, *APART):
        both = []
        for metric, rows in found.items():
            shown = [row for row in here if row["metric"] == metric]
            if shown:
                speedup = metric == "speedup"
                axis = axes.values(METRICS[metric], [*rows, *marks.singles(rows, tables)], one=speedup)
                singles += (own := marks.singles(shown, tables))
                both.append(panels.lines(shown, x, axis, SIZE, one=speedup, singles=own))
        lines.append(alt.hconcat(*both, title=f"{title} ({captions.prompts(here)})", spacing=24))
    return theme.finish(alt.vconcat(legends.boxes(legends.significance(every, singles), 2 * SIZE[0]), *lines))


def _found(tables: Mapping[str, pa.Table]) -> dict[str, list[queries.Row]]:
    """Rows by metric. Not the peaks of memory: a process may serve many runs, and hold what others needed."""
    return queries.along(tables, EXPERIMENT, [*METRICS], "batch")


def caption(tables: Mapping[str, pa.Table]) -> str:
    """At which batch each method's gain ends, and who is fastest of all."""
    found = _found(tables)
    rows = [row for rows in found.values() for row in rows]
    lists = []
    placed = queries.places(rows, *APART)
    for title, here in placed:
        ratios = [row for row in here if row["metric"] == "speedup"]
        own = [[row for row in ratios if row["label"] == label] for label in dict.fromkeys(r["label"] for r in ratios)]
        gains = [_gain(title, line) for line in sorted(own, key=lambda line: -line[0]["value"])]
        most = _most([row for row in here if row["metric"] == "throughput"])
        lists.append([*gains, f"Most tokens per second{f' on {title}' if len(placed) > 1 else ''}: {most}."])
    return captions.short(captions.in_turn(lists))


def _gain(title: str, rows: list[queries.Row]) -> str:
    """One method's speedup at the smallest size, and the first size from which on it is no faster."""
    first = rows[0]
    text = f"On {title}, {first['label']} reaches {grammar.interval(first, '×')} at {first['x']}"
    text += f" ({captions.verdict(first)})"
    if len(rows) == 1:
        return text + "."
    gaining, others = ([row for row in rows if (row["value"] > 1) == gains] for gains in (True, False))
    if not gaining:
        return text + "; it gains at no size."
    if not others:
        return text + "; its gain does not end among these sizes."
    ended = others[0]
    if ended["x"] > gaining[-1]["x"]:
        return (
            text + f"; its gain ends at {ended['x']}, with {grammar.interval(ended, '×')} ({captions.verdict(ended)})."
        )
    sizes = (grammar.joined([str(row["x"]) for row in part]) for part in (gaining, others))
    return text + "; it gains at {}, not at {}.".format(*sizes)


def _most(rows: list[queries.Row]) -> str:
    best = max(rows, key=lambda row: row["value"])
    return f"{best['label']} at {best['x']}, {grammar.interval(best)}"
