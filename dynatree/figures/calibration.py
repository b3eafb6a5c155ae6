"""Does a drafted token hit as often as the tree says? Stated against observed, step by step. Knows only nodes."""

import math
from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, queries, theme

TABLES: tuple[str, ...] = ("nodes",)
SECTION = "Costs"

SIZE, COLUMNS = 220, 2
BINS, FEWEST = 10, 10


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A panel per method: observed hit rate by stated probability of a step. Raises UserError without nodes."""
    found = _bins(tables)
    most = max(row["count"] for rows in found.values() for row in rows)
    scale = alt.Scale(domain=[0, 1], nice=False)
    charts = []
    for method, rows in found.items():
        told = f"calibration error {_error(rows):.1%}, {_count(rows)} nodes"
        title = alt.TitleParams(theme.display(method), subtitle=told)
        x = alt.X("stated:Q", scale=scale, axis=alt.Axis(title="stated probability", format="%", tickCount=5))
        y = alt.Y("observed:Q", scale=scale, axis=alt.Axis(title="observed hits", format="%", tickCount=5))
        ends = alt.Chart(
            queries.data([{"stated": 0.0, "observed": 0.0}, {"stated": 1.0, "observed": 1.0}]), title=title
        )
        ends = ends.mark_line(color=theme.QUIET, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y)
        base = alt.Chart(queries.data(rows), width=SIZE, height=SIZE).encode(x=x, y=y)
        size = alt.Size("count:Q", scale=alt.Scale(type="sqrt", domain=[0, most], range=[12, 400]), legend=None)
        dots = base.mark_circle(color=theme.colour(method), opacity=0.8).encode(size=size)
        charts.append(ends + dots)
    return theme.finish(alt.concat(*charts, columns=COLUMNS, spacing=22))


def _bins(tables: Mapping[str, pa.Table]) -> dict[str, list[queries.Row]]:
    """Per method with enough nodes: mean stated probability, hit rate and number of the nodes of each bin."""
    found: dict[str, list[queries.Row]] = {}
    for method, nodes in queries.tested(tables).items():
        groups: dict[int, list[tuple[float, bool]]] = {}
        for row, parent in nodes:
            stated = min(1.0, math.exp(row["path_log_probability"] - parent["path_log_probability"]))
            groups.setdefault(min(BINS - 1, int(stated * BINS)), []).append((stated, row["hit"]))
        if len(nodes) >= FEWEST:
            found[method] = [
                {
                    "stated": sum(stated for stated, _ in group) / len(group),
                    "observed": sum(hit for _, hit in group) / len(group),
                    "count": len(group),
                }
                for _, group in sorted(groups.items())
            ]
    if not found:
        raise UserError(f"no method has {FEWEST} verified nodes below an accepted one")
    return found


def _count(rows: list[queries.Row]) -> str:
    return f"{sum(row['count'] for row in rows):,}"


def _error(rows: list[queries.Row]) -> float:
    """Expected calibration error (Guo et al., ICML 2017, 1706.04599)."""
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["stated"] - row["observed"]) for row in rows) / total


def caption(tables: Mapping[str, pa.Table]) -> str:
    """The expected calibration error of each method, the smallest first, and whether it is overconfident."""
    parts = []
    for method, rows in sorted(_bins(tables).items(), key=lambda found: _error(found[1])):
        total = sum(row["count"] for row in rows)
        bias = sum(row["count"] * (row["stated"] - row["observed"]) for row in rows) / total
        way = "is overconfident" if bias > 0.02 else "is underconfident" if bias < -0.02 else "is calibrated on average"
        parts.append(f"{theme.display(method)} {way} (expected calibration error {_error(rows):.1%}).")
    parts.append("A dot, larger for more nodes: how often drafted tokens after an accepted one were right.")
    return captions.short(parts)
