"""The paired benchmark: speedup of every method over plain decoding, worst prompt included. Knows no record."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree import captions, panels, theme

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
    columns = []
    for place, text in enumerate(dict.fromkeys(row["text"] for row in rows)):
        here = [
            row
            | {"name": theme.display(row["method"]), "end": row["high"] or row["value"]}
            | {"words": theme.number(row["value"])}
            | {"fill": theme.colour(row["method"]) if row["resolved"] or row["method"] == BASELINE else "white"}
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
        stroke = alt.Stroke("method:N", scale=theme.colour_scale(methods), legend=None)
        base = alt.Chart(theme.data(here), width=WIDTH, height=alt.Step(STEP), title=title).encode(y=y)
        one = alt.Chart(theme.data([{"value": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x=x)
        layers = [
            one,
            base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour),
            base.mark_point(size=70, strokeWidth=2, opacity=1).encode(
                x=x, stroke=stroke, fill=alt.Fill("fill:N", scale=None)
            ),
            base.mark_tick(thickness=2, size=11).encode(x=alt.X("worst:Q", scale=scale), color=colour),
            theme.words(base.encode(x=alt.X("end:Q", scale=scale), text="words:N"), 7),
        ]
        columns.append(alt.layer(*layers))
    key = theme.key([*panels.RESOLVED, ("tick: worst prompt", "white", "white")], 2 * WIDTH)
    return theme.finish(alt.vconcat(key, alt.hconcat(*columns, spacing=24)))


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each kind of text, by how much, whether resolved, its worst prompt, and who is not apart."""
    rows = theme.rows(tables, "benchmark", dataset="all", baseline=BASELINE)
    parts = ["All methods of a prompt side by side in one process; dots are geometric means, ticks the worst prompt."]
    for text in dict.fromkeys(row["text"] for row in rows):
        here = [row for row in rows if row["text"] == text]
        ranked = sorted((row for row in here if row["method"] not in panels.PLAIN), key=lambda row: -row["value"])
        if ranked:
            parts.append(_sentences(text, ranked))
        again = next((row for row in here if row["method"] == panels.AGAIN), None)
        if again:
            name = theme.display(again["method"])
            parts.append(f"{name}, which differs by chance alone, has {theme.number(again['worst'])}× on its worst.")
    return " ".join([*parts, f"{captions.intervals(rows).capitalize()}."])


def _sentences(text: str, ranked: list[theme.Row]) -> str:
    best, *others = ranked
    given = f"{theme.interval(best, '×')} transformers' greedy decoding ({captions.verdict(best)}) and "
    given += f"{theme.number(best['worst'])}× on its worst prompt"
    if best["value"] <= 1:
        return f"On {text} text no method beats it; closest is {theme.display(best['method'])}, {given}."
    sentence = f"On {text} text {theme.display(best['method'])} is fastest, {given}"
    if others:
        sentence += f"; next is {theme.display(others[0]['method'])} with {theme.interval(others[0], '×')}"
    level = [row for row in others if best["low"] is not None and row["high"] and row["high"] >= best["low"]]
    if level:
        sentence += (
            f". Not clearly behind, by their intervals: {theme.joined([theme.display(r['method']) for r in level])}"
        )
    return sentence + "."
