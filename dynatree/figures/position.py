"""Speedup along an output, and on text that repeats itself against text that is new. Knows the table `parts` alone."""

from collections.abc import Mapping, Sequence

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import axes, captions, grammar, legends, panels, queries, theme
from dynatree.tables import bootstrap

TABLES: tuple[str, ...] = ("parts",)
SECTION = "Speed"

SIZE = (240, 190)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row per data set: speedup by quarter of the output, and by kind of text. Raises UserError without speedups."""
    rows = _rows(tables)
    kinds = alt.X(
        "x:N", scale=alt.Scale(type="point", domain=list(queries.KINDS)), axis=alt.Axis(title=None, labelAngle=0)
    )
    stacked = []
    for title, here in queries.places(rows):
        quarters = [row | {"x": axes.QUARTERS[row["part"]]} for row in here if row["part"] in axes.QUARTERS]
        texts = [row | {"x": row["part"]} for row in here if row["part"] in queries.KINDS]
        axis = axes.values("speedup (×)", here, one=True, log=True)
        head = f"{title} ({captions.prompts(quarters)})"
        left = panels.lines(quarters, axes.percents(), axis, SIZE, title=head, one=True, labelled=False)
        share = f"{queries.looping(tables, 'headline', here[0]['dataset']):.0%} of the tokens are in loops"
        right = panels.lines(texts, kinds, axis, (SIZE[0] * 0.6, SIZE[1]), title=share, one=True)
        stacked.append(alt.hconcat(left, right, spacing=20))
    return theme.finish(alt.vconcat(legends.boxes(legends.significance(rows), 2 * SIZE[0]), *stacked, spacing=16))


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
    parts = [*axes.QUARTERS, *queries.KINDS]
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


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on new text and in loops, by how much, whether significant, and how much of the text loops."""
    lists = []
    for title, here in queries.places(_rows(tables)):
        share = queries.looping(tables, "headline", here[0]["dataset"])
        clauses = []
        for kind, words in zip(
            queries.KINDS[::-1], ("on new text", f"in loops ({share:.0%} of the tokens)"), strict=True
        ):
            if those := [row for row in here if row["part"] == kind]:
                best = max(those, key=lambda row: row["value"])
                said = f"{best['label']} {grammar.interval(best, '×')}, {captions.judged(best['significant'])}"
                clauses.append(f"{words} {said if best['value'] > 1 else 'autoregressive decoding'}")
        lists.append([f"On {title} ({captions.prompts(here)}), fastest {'; '.join(clauses)}."])
    return captions.short([*captions.in_turn(lists), "A loop: 17 tokens or more in a row that occurred before."])
