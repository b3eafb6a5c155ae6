"""The paired benchmark: speedup of every method over plain decoding, worst prompt included. Knows no record."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree import theme

TABLES: tuple[str, ...] = ("benchmark",)
SECTION = "Speed"

BASELINE = "transformers"
WIDTH, STEP = 330, 22


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A column a kind of text: geometric means over all data sets with intervals, and each method's worst prompt."""
    rows = theme.rows(tables, "benchmark", dataset="all", baseline=BASELINE)
    methods = theme.ordered(row["method"] for row in rows)
    names = [theme.display(method) for method in methods]
    ends = [value for row in rows for value in (row["worst"], row["high"] or row["value"])]
    scale = alt.Scale(type="log", domain=[min(0.8, min(ends) * 0.9), max(1.3, max(ends) * 1.35)], nice=False)
    ticks = [0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]
    panels = []
    for place, text in enumerate(dict.fromkeys(row["text"] for row in rows)):
        here = [
            row
            | {"name": theme.display(row["method"]), "end": row["high"] or row["value"]}
            | {"words": theme.number(row["value"])}
            for row in rows
            if row["text"] == text
        ]
        prompts, repeated = here[0]["prompts"], here[0]["repetition"]
        title = alt.TitleParams(text, subtitle=f"{theme.plural(prompts, 'prompt')}, {repeated:.0%} repeated verbatim")
        y = alt.Y(
            "name:N",
            sort=names,
            title=None,
            scale=alt.Scale(domain=names),
            axis=alt.Axis(ticks=False, domain=False, labels=place == 0, labelPadding=6),
        )
        x = alt.X("value:Q", scale=scale, axis=alt.Axis(title="speedup over transformers' greedy (×)", values=ticks))
        colour = alt.Color("method:N", scale=theme.colour_scale(methods), legend=None)
        base = alt.Chart(theme.data(here), width=WIDTH, height=alt.Step(STEP), title=title).encode(y=y)
        one = alt.Chart(theme.data([{"value": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x=x)
        layers = [
            one,
            base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour),
            base.mark_point(filled=True, size=70, opacity=1).encode(x=x, color=colour),
            base.mark_tick(thickness=2, size=11).encode(x=alt.X("worst:Q", scale=scale), color=colour),
            theme.words(base.encode(x=alt.X("end:Q", scale=scale), text="words:N"), 7),
        ]
        panels.append(alt.layer(*layers))
    return theme.finish(alt.hconcat(*panels, spacing=24))


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each kind of text, by how much, whether resolved, and its worst prompt."""
    rows = theme.rows(tables, "benchmark", dataset="all", baseline=BASELINE)
    parts = ["All methods of a prompt side by side in one process; dots are geometric means, ticks the worst prompt."]
    for text in dict.fromkeys(row["text"] for row in rows):
        ranked = sorted((row for row in rows if row["text"] == text), key=lambda row: -row["value"])
        best, second = ranked[0], ranked[1]
        verdict = "resolved" if best["resolved"] else "not resolved"
        parts.append(
            f"On {text} text {theme.display(best['method'])} is fastest, {theme.interval(best, '×')} transformers' "
            f"greedy decoding ({verdict} with {theme.plural(best['prompts'], 'prompt')}) and "
            f"{theme.number(best['worst'])}× on its worst prompt; next is {theme.display(second['method'])} with "
            f"{theme.interval(second, '×')}."
        )
    return " ".join(parts)
