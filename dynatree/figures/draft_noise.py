"""What it is worth that draft and target share their noise: accepted tokens and speed with other noise, or none.

The same tree in every variant, so that noise and verification alone differ. Knows only the summary.
"""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, legends, placement, queries, theme

TABLES: tuple[str, ...] = ("summary",)
SECTION = "Settings"

EXPERIMENT = "draft_noise"  # and those whose names begin with it: one a temperature
SHARED = "shared_noise"
ORDER = (SHARED, "independent_noise", "no_noise", "traversal")
ACCEPTED, SPEED = "mean_path_length", "speedup"
AXES = {ACCEPTED: "drafted tokens accepted per round", SPEED: "speedup (×)"}
WIDTH, STEP = 220, 22

Kinds = dict[str, dict[str, list[queries.Row]]]


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A line of two panels per kind of text and place, a row per variant. Raises UserError where none drafted."""
    found = _found(tables)
    ends = {metric: [row["high"] or row["value"] for rows in found.values() for row in rows[metric]] for metric in AXES}
    # Numbers stand beside the dots.
    scales = {metric: alt.Scale(domain=[0, 1.25 * max(*high, 1.0)], nice=False) for metric, high in ends.items()}
    lines = []
    for title, rows in found.items():
        panels = [_panel(rows[metric], metric, scales[metric], title == list(found)[-1]) for metric in AXES]
        said = alt.TitleParams(title, subtitle=captions.prompts(rows[SPEED]))
        lines.append(alt.hconcat(*panels, title=said, spacing=24))
    return theme.finish(alt.vconcat(legends.boxes(legends.SIGNIFICANCE, 2 * WIDTH), *lines))


def _panel(rows: list[queries.Row], metric: str, scale: alt.Scale, labelled: bool) -> theme.Layers:
    tone, names = theme.colour("fixed_tree"), [theme.display(row["method"]) for row in rows]
    shown = [
        row
        | {"name": theme.display(row["method"]), "words": grammar.number(row["value"])}
        | {"fill": tone if row["significant"] else "white"}
        for row in rows
    ]
    axis = alt.Axis(title=AXES[metric] if labelled else None, tickCount=5)
    x = alt.X("value:Q", scale=scale, axis=axis)
    y = alt.Y(
        "name:N",
        sort=names,
        title=None,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(labels=metric == ACCEPTED, ticks=False, domain=False, grid=True, labelPadding=6),
    )
    base, judged = alt.Chart(queries.data(shown)).encode(x=x, y=y), metric == SPEED
    layers: list[alt.Chart | alt.LayerChart] = []
    if judged:
        one = alt.Chart(queries.data([{"value": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3])
        layers.append(one.encode(x=x))
    else:
        layers.append(base.mark_bar(size=9, color=tone, opacity=0.45))
    if usual := [row for row in shown if row["method"] == SHARED]:
        layers.append(alt.Chart(queries.data(usual)).mark_rule(color=tone, strokeWidth=2, opacity=0.35).encode(x=x))
    if ranged := [row for row in shown if row["low"] is not None]:
        rule = alt.Chart(queries.data(ranged)).mark_rule(color=tone, strokeWidth=2)
        layers.append(rule.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y))
    if judged:
        dots = base.mark_point(size=70, strokeWidth=2, opacity=1, stroke=tone)
        layers.append(dots.encode(fill=alt.Fill("fill:N", scale=None)))
    layers += placement.numbers(shown, x, y, 9)
    return alt.layer(*layers).properties(width=WIDTH, height=alt.Step(STEP))


def _found(tables: Mapping[str, pa.Table]) -> Kinds:
    """By kind of text and place the rows of each metric, of the variants in their order."""
    every = [row for row in queries.rows(tables, "summary") if row["experiment"].startswith(EXPERIMENT)]
    drafting = [row for row in every if row["metric"] in AXES and row["method"] not in queries.UNDRAFTED]
    found: Kinds = {}
    for experiment in dict.fromkeys(row["experiment"] for row in drafting):
        here = [row for row in drafting if row["experiment"] == experiment]
        for place, rows in queries.places(here, "prompt_tokens", "batch", "dtype"):
            own = {metric: sorted((r for r in rows if r["metric"] == metric), key=_rank) for metric in AXES}
            if all(own.values()):
                title = f"{rows[0]['kind'].capitalize()}: {place}"
                # Two experiments may have one kind of text.
                found[f"{title}, {experiment}" if title in found else title] = own
    if not found:
        raise UserError(f"{EXPERIMENT}: no method that drafts was run; see it in params.yaml")
    return found


def _rank(row: queries.Row) -> tuple[int, str, str]:
    known = ORDER.index(row["method"]) if row["method"] in ORDER else len(ORDER)
    return known, row["method"], row["settings"]


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Per kind of text which variant has most drafted tokens accepted a round, and which is fastest."""
    found = _found(tables)
    parts = []
    for title, rows in found.items():
        most = max(rows[ACCEPTED], key=lambda row: row["value"])
        beside = [
            f"{theme.display(row['method'])} {grammar.number(row['value'])}"
            for row in rows[ACCEPTED]
            if row["method"] != most["method"]
        ]
        than = f" ({', '.join(beside)})" if beside else ""
        told = f"{theme.display(most['method'])} has most drafted tokens accepted a round, "
        parts.append(f"{title}: {told}{grammar.number(most['value'])}{than}.")
    for title, rows in found.items():
        names = queries.labels((row["method"], row["settings"]) for row in rows[SPEED])
        parts.append(f"{title}: {captions.fastest(rows[SPEED], names)}.")
    every = [row for rows in found.values() for part in rows.values() for row in part]
    return captions.short([*parts, f"{captions.intervals(every).capitalize()}."])
