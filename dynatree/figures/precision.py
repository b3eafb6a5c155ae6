"""Tokens a second and speedup in each format of the weights, and what a format does to text. Knows no round."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import axes, captions, grammar, legends, marks, panels, queries, theme

TABLES: tuple[str, ...] = ("summary", "runs", "perplexity")
SECTION = "Speed"

EXPERIMENT = "precision"
APART = ("prompt_tokens", "batch")  # what an experiment may vary besides
METRICS = {"throughput": "tokens/s", "speedup": "speedup in that format (×)"}
# From the most bits to the fewest.
ORDER = ("float64", "float32", "bfloat16", "float16", "int8", "int4")
SIZE = (290, 190)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row per data set: throughput, and speedup in the same format. UserError without the experiment."""
    found = _found(tables)
    every = [row for rows in found.values() for row in rows]
    formats = _formats(every)
    lines: list[alt.HConcatChart] = []
    singles: list[queries.Row] = []
    for title, here in queries.places(every, *APART):
        both, words = [], [[dtype, *_of_text(tables, here[0]["dataset"], dtype)] for dtype in formats]
        x = alt.X(
            "x:Q",
            scale=alt.Scale(domain=[-0.3, len(formats) - 0.7], nice=False),
            axis=alt.Axis(
                title="format of the weights",
                values=list(range(len(formats))),
                labelExpr=f"{words}[datum.value]",
                grid=False,
            ),
        )
        for metric, rows in found.items():
            shown = [row | {"x": formats.index(row["dtype"])} for row in here if row["metric"] == metric]
            shown.sort(key=lambda row: row["x"])
            speedup = metric == "speedup"
            axis = axes.values(METRICS[metric], [*rows, *marks.singles(rows, tables)], one=speedup)
            singles += (own := marks.singles(shown, tables))
            both.append(panels.lines(shown, x, axis, SIZE, one=speedup, singles=own))
        lines.append(alt.hconcat(*both, title=f"{title} ({captions.prompts(here)})", spacing=24))
    return theme.finish(alt.vconcat(legends.boxes(legends.significance(every, singles), 2 * SIZE[0] + 100), *lines))


def _found(tables: Mapping[str, pa.Table]) -> dict[str, list[queries.Row]]:
    return queries.along(tables, EXPERIMENT, METRICS, "dtype")


def _formats(rows: list[queries.Row]) -> list[str]:
    """Those that were measured, from the most bits to the fewest."""
    return [dtype for dtype in ORDER if dtype in {row["dtype"] for row in rows}]


def _of_text(tables: Mapping[str, pa.Table], dataset: str, dtype: str) -> list[str]:
    """The text's perplexity in this format, and how many of autoregressive decoding's outputs are float32's: words."""
    texts = [row for row in queries.rows(tables, "perplexity", dataset=dataset) if row["dtype"] == dtype]
    words = [f"perplexity {grammar.number(row['perplexity'])}" for row in texts]
    own = queries.rows(tables, "runs", experiment=EXPERIMENT, method=queries.AUTOREGRESSIVE, dataset=dataset)
    same = [row["identical_float32"] for row in own if row["dtype"] == dtype and row["identical_float32"] is not None]
    if same and dtype != "float32":
        words += [f"{sum(same)} of {len(same)} outputs", "as in float32"]
    return words


def caption(tables: Mapping[str, pa.Table]) -> str:
    """The fastest method of each format, and its speedup there."""
    found = _found(tables)
    rows = [row for part in found.values() for row in part]
    parts = []
    for title, here in queries.places(rows, *APART):
        clauses = []
        for dtype in _formats(here):
            own = [row for row in here if row["dtype"] == dtype]
            speeds = {row["label"]: row for row in own if row["metric"] == "throughput"}
            best = max(speeds.values(), key=lambda row: row["value"])
            clause = f"{dtype} {best['label']} {grammar.number(best['value'])}"
            ratios = [row for row in own if row["metric"] == "speedup" and row["label"] == best["label"]]
            said = [f" ({grammar.interval(row, '×')}, {captions.judged(row['significant'])})" for row in ratios]
            clauses.append(clause + "".join(said))
        parts.append(f"Most tokens/s on {title} ({captions.prompts(here)}): {'; '.join(clauses)}.")
    return captions.short([*parts, "Speedup is over autoregressive decoding in the same format."])
