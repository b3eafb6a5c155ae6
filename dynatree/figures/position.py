"""Speedup along an output, and on text that repeats itself against text that is new. Knows the table `parts` alone."""

from collections.abc import Mapping, Sequence

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import axes, captions, legends, panels, queries, theme
from dynatree.tables import bootstrap

TABLES: tuple[str, ...] = ("parts",)
SECTION = "Speed"

KINDS = ("loops", "new text")
SIZE = (240, 190)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row per data set: speedup by quarter of the output, and by kind of text. Raises UserError without speedups."""
    rows = _rows(tables)
    kinds = alt.X("x:N", scale=alt.Scale(type="point", domain=list(KINDS)), axis=alt.Axis(title=None, labelAngle=0))
    stacked = []
    for title, here in queries.places(rows):
        quarters = [row | {"x": axes.QUARTERS[row["part"]]} for row in here if row["part"] in axes.QUARTERS]
        texts = [row | {"x": row["part"]} for row in here if row["part"] in KINDS]
        axis = axes.values("speedup (×)", here, one=True, log=True)
        head = f"{title} ({captions.prompts(quarters)})"
        left = panels.lines(quarters, axes.percents(), axis, SIZE, title=head, one=True, labelled=False)
        share = f"{_share(tables, title):.0%} of the tokens are in loops"
        right = panels.lines(texts, kinds, axis, (SIZE[0] * 0.6, SIZE[1]), title=share, one=True)
        stacked.append(alt.hconcat(left, right, spacing=20))
    return theme.finish(alt.vconcat(legends.boxes(legends.SIGNIFICANCE, 2 * SIZE[0]), *stacked, spacing=16))


def _rows(tables: Mapping[str, pa.Table]) -> list[queries.Row]:
    """Geometric means of the headline's speedups by part, with `label`, in drawing order."""
    found = [
        row
        for row in queries.rows(tables, "parts", experiment="headline")
        if row["speedup"] is not None and row["method"] != queries.AUTOREGRESSIVE
    ]
    if not found:
        raise UserError("table 'parts' has no speedups: no headline run of a method other than autoregressive decoding")
    names = queries.labels((row["method"], row["settings"]) for row in found)
    groups: dict[tuple[str, tuple[str, str], str], list[queries.Row]] = {}
    for row in found:
        groups.setdefault((row["dataset"], (row["method"], row["settings"]), row["part"]), []).append(row)
    parts = [*axes.QUARTERS, *KINDS]
    order = sorted(groups, key=lambda key: (key[0], list(names).index(key[1]), parts.index(key[2])))
    return [
        {"dataset": dataset, "method": series[0], "settings": series[1], "label": names[series], "part": part}
        | _mean(groups[dataset, series, part])
        for dataset, series, part in order
    ]


def _mean(rows: Sequence[queries.Row]) -> queries.Row:
    values = [row["speedup"] for row in rows]
    ends = bootstrap.interval(values, [row["document_id"] for row in rows], geometric=True)
    prompts = len({row["prompt_id"] for row in rows})
    return {
        "prompts": prompts,
        "value": bootstrap.mean(values, geometric=True),
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
        "significant": bootstrap.significant(ends, prompts),
    }


def _share(tables: Mapping[str, pa.Table], dataset: str) -> float:
    """Share of autoregressive decoding's tokens that are in loops."""
    rows = queries.rows(tables, "parts", experiment="headline", dataset=dataset, method=queries.AUTOREGRESSIVE)
    counts = {kind: sum(row["tokens"] for row in rows if row["part"] == kind) for kind in KINDS}
    return counts["loops"] / (sum(counts.values()) or 1)


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on new text and in loops, by how much, whether significant, and how much of the text loops."""
    rows = _rows(tables)
    names = {(row["method"], row["settings"]): row["label"] for row in rows}
    parts = [
        "Speed of each quarter of an output, prefill left out, and of tokens inside and outside of verbatim "
        "repetition (spans of 17 tokens or more that occurred in prompt or output before)."
    ]
    for title, here in queries.places(rows):
        clauses = []
        for kind, words in zip(KINDS, ("In loops", "on new text"), strict=True):
            if those := [row for row in here if row["part"] == kind]:
                clauses.append(f"{words} {captions.fastest(those, names)}")
        text = "; ".join(clauses)
        parts.append(f"On {title} {_share(tables, title):.0%} of the tokens are in loops.")
        parts.append(f"{text[:1].upper()}{text[1:]}.")
    return " ".join([*parts, f"Geometric means over prompts; {captions.intervals(rows)}."])
