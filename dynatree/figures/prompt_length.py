"""Speedup and times of the first and of later tokens against the length of the prompt. Knows only the summary."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import axes, captions, grammar, legends, marks, panels, queries, theme

TABLES: tuple[str, ...] = ("summary", "runs")
SECTION = "Speed"

EXPERIMENT = "prompt_length"
APART = ("batch", "dtype")  # what an experiment may vary besides
METRICS = {"speedup": "speedup (×)", "tpot_ms": "ms per later token", "ttft_ms": "ms to the first token"}
SIZE = (270, 150)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A column per data set: speedup, ms per later token, ms to the first token. Raises UserError without speedups."""
    found = queries.along(tables, EXPERIMENT, METRICS, "prompt_tokens")
    every = [row for rows in found.values() for row in rows]
    ticks = sorted({row["x"] for row in every})
    x = axes.lengths("prompt tokens", ticks)
    columns: list[alt.VConcatChart] = []
    singles: list[queries.Row] = []
    for title, here in queries.places(every, *APART):
        stacked = []
        for metric, rows in found.items():
            shown = [row for row in here if row["metric"] == metric]
            if shown:
                speedup = metric == "speedup"
                axis = axes.values(METRICS[metric], [*rows, *marks.singles(rows, tables)], one=speedup, log=not speedup)
                head = f"{title} ({captions.prompts(shown)})" if speedup else ""
                singles += (own := marks.singles(shown, tables))
                placed = axes.beside([*shown, *own], ticks, SIZE[0])
                points, small = placed[: len(shown)], placed[len(shown) :]
                stacked.append(panels.lines(points, x, axis, SIZE, title=head, one=speedup, singles=small))
        columns.append(alt.vconcat(*stacked, spacing=12))
    return theme.finish(
        alt.vconcat(
            legends.boxes(legends.significance(every, singles), SIZE[0] * len(columns) + 120),
            alt.hconcat(*columns, spacing=24),
        )
    )


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest at which length; at both ends by how much, whether significant; how later tokens slow down, and
    the wait for the first.
    """
    found = queries.along(tables, EXPERIMENT, METRICS, "prompt_tokens")
    names = {(row["method"], row["settings"]): row["label"] for rows in found.values() for row in rows}
    lists = []
    for title, here in queries.places([row for rows in found.values() for row in rows], *APART):
        ratios = [row for row in here if row["metric"] == "speedup"]
        along = captions.fastest_along(ratios, names, "prompt tokens", title)
        growth = _growth([row for row in here if row["metric"] == "tpot_ms"], names)
        waits = _waits([row for row in here if row["metric"] == "ttft_ms"])
        lists.append([*filter(None, [*along[:2], growth, *along[2:], waits])])
    return captions.short(captions.in_turn(lists))


def _growth(rows: list[queries.Row], names: captions.Names) -> str:
    """How many times as long a later token takes after the longest prompts as after the shortest, by method."""
    lengths = sorted({row["x"] for row in rows})
    ends = {(row["method"], row["settings"], row["x"]): row["value"] for row in rows}
    both = [key for key in names if (*key, lengths[0]) in ends and (*key, lengths[-1]) in ends] if rows else []
    if not both or lengths[0] == lengths[-1]:
        return ""
    grown = [
        f"{grammar.number(ends[*key, lengths[-1]] / ends[*key, lengths[0]])} times as long with {names[key]}"
        for key in both
    ]
    longest = f"After a prompt of {lengths[-1]:,} tokens a later token takes {grammar.joined(grown)}"
    return f"{longest} as after one of {lengths[0]:,}."


def _waits(rows: list[queries.Row]) -> str:
    """Shortest and longest mean time to the first token, at the shortest and the longest prompts."""
    lengths = sorted({row["x"] for row in rows})
    clauses = []
    for length in dict.fromkeys((lengths[0], lengths[-1])):
        ranked = sorted((row for row in rows if row["x"] == length), key=lambda row: (row["value"], row["label"]))
        first, last = (f"{grammar.number(row['value'])} ms ({row['label']})" for row in (ranked[0], ranked[-1]))
        span = f"{first} to {last}" if len(ranked) > 1 else first
        clauses.append(f"{span} after a prompt of {length:,} tokens")
    return f"The first token takes {grammar.joined(clauses)}."
