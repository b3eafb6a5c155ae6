"""Throughput and memory of whole batches against their size, and where speculation stops to pay.

Knows only the summary.
"""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import axes, captions, grammar, legends, panels, queries, theme

TABLES: tuple[str, ...] = ("summary",)
SECTION = "Speed"

EXPERIMENT = "batch_size"
METRICS = {
    "throughput": "tokens/s of the whole batch",
    "speedup": "speedup at that size (×)",
    "peak_mib": "MiB in use at the peak",
}
SIZE = (230, 180)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row per data set: throughput, speedup, peak memory. Raises UserError without the experiment."""
    found = _found(tables)
    every = [row for rows in found.values() for row in rows]
    sizes = sorted({row["x"] for row in every})
    x = alt.X(
        "x:Q",
        scale=alt.Scale(type="log", base=2, domain=[sizes[0] / 1.15, sizes[-1] * 1.15], nice=False),
        axis=alt.Axis(title="requests decoded together", values=sizes, format=","),
    )
    lines = []
    for title, here in queries.places(every):
        both = []
        for metric, rows in found.items():
            shown = [row for row in here if row["metric"] == metric]
            if shown:
                speedup = metric == "speedup"
                axis = axes.values(METRICS[metric], rows, one=speedup)
                both.append(panels.lines(shown, x, axis, SIZE, one=speedup))
        lines.append(alt.hconcat(*both, title=f"{title} ({captions.prompts(here)})", spacing=24))
    return theme.finish(alt.vconcat(legends.boxes(legends.SIGNIFICANCE, 2 * SIZE[0]), *lines))


def _found(tables: Mapping[str, pa.Table]) -> dict[str, list[queries.Row]]:
    """Rows by metric; memory only where the system told it."""
    told = {row["metric"] for row in queries.rows(tables, "summary", experiment=EXPERIMENT)}
    return queries.along(tables, EXPERIMENT, [m for m in METRICS if m in told or m != "peak_mib"], "batch")


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest at the smallest and the largest batch, and at which batch each method's gain ends."""
    found = _found(tables)
    parts = [
        "Requests decoded together: tokens/s of the whole batch, speedup over autoregressive decoding of the same "
        "batches, and the process's peak memory."
    ]
    rows = [row for rows in found.values() for row in rows]
    for title, here in queries.places(rows):
        parts.append(f"On {title} ({captions.prompts(here)}, at every size):")
        ratios = [row for row in here if row["metric"] == "speedup"]
        for label in dict.fromkeys(row["label"] for row in ratios):
            parts.append(_gain(label, [row for row in ratios if row["label"] == label]))
        parts.append(_most([row for row in here if row["metric"] == "throughput"]))
        parts.append(_memory([row for row in here if row["metric"] == "peak_mib"]))
    means = "Geometric means over prompts (of memory arithmetic), throughput at the machine's usual pace"
    over = "documents, or over batches, which are measured as one"
    return " ".join([*filter(None, parts), f"{means}; {captions.intervals(rows, over, 'documents or batches')}."])


def _gain(label: str, rows: list[queries.Row]) -> str:
    """One method's speedup at the ends, and the first size from which on it is no faster."""
    first, last = rows[0], rows[-1]
    text = f"{label} reaches {grammar.interval(first, '×')} at {first['x']} ({captions.verdict(first)})"
    if len(rows) == 1:
        return text + "."
    text += f" and {grammar.interval(last, '×')} at {last['x']} ({captions.verdict(last)})"
    gaining = [row["x"] for row in rows if row["value"] > 1]
    after = [row["x"] for row in rows if row["x"] > max(gaining, default=0)]
    if not gaining:
        return text + "; it gains at no size."
    if not after:
        return text + "; its gain does not end among these sizes."
    ended = next(row for row in rows if row["x"] == after[0])
    return text + f"; its gain ends at {after[0]}, with {grammar.interval(ended, '×')} ({captions.verdict(ended)})."


def _most(rows: list[queries.Row]) -> str:
    best = max(rows, key=lambda row: row["value"])
    return f"Most tokens per second: {best['label']} at {best['x']}, {grammar.interval(best)}."


def _memory(rows: list[queries.Row]) -> str:
    """What each method needs at the smallest and the largest batch; empty where it is not known."""
    clauses = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        ends = [grammar.number(own[place]["value"]) for place in dict.fromkeys((0, len(own) - 1))]
        clauses.append(f"{label} {' to '.join(ends)} MiB")
    return f"Memory at the peak: {grammar.joined(clauses)}." if clauses else ""
