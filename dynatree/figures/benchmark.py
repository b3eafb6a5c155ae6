"""The paired benchmark: speedup of every method over plain decoding, worst prompt included. Knows no record."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree import captions, panels, ranking, theme

TABLES: tuple[str, ...] = ("benchmark",)
SECTION = "Speed"

BASELINE = "transformers"
WIDTH = 330


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A column a kind of text: geometric means over all data sets with intervals, and each method's worst prompt."""
    rows = theme.rows(tables, "benchmark", dataset="all", baseline=BASELINE)
    methods = theme.ordered(row["method"] for row in rows)
    axis = ("speedup over transformers' greedy (×)", ranking.scale(rows))
    columns = []
    for place, text in enumerate(dict.fromkeys(row["text"] for row in rows)):
        here = [row | {"words": theme.number(row["value"])} for row in rows if row["text"] == text]
        prompts, repeated = here[0]["prompts"], here[0]["repetition"]
        title = alt.TitleParams(text, subtitle=f"{theme.plural(prompts, 'prompt')}, {repeated:.0%} repeated verbatim")
        columns.append(ranking.panel(here, methods, axis, WIDTH, title, labelled=place == 0))
    key = theme.key(ranking.KEY, 2 * WIDTH)
    return theme.finish(alt.vconcat(key, alt.hconcat(*columns, spacing=24)))


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each kind of text, by how much, whether resolved, its worst prompt, and who is not apart."""
    rows = theme.rows(tables, "benchmark", dataset="all", baseline=BASELINE)
    parts = ["All methods of a prompt side by side in one process; dots are geometric means, ticks the worst prompt."]
    for text in dict.fromkeys(row["text"] for row in rows):
        here = [row for row in rows if row["text"] == text]
        timed = [row for row in theme.rows(tables, "benchmark", text=text) if row["worst_again"] is not None]
        ranked = sorted((row for row in here if row["method"] not in panels.PLAIN), key=lambda row: -row["value"])
        if ranked:
            parts.append(_sentences(text, ranked))
        again = next((row for row in here if row["method"] == panels.AGAIN), None)
        if again:
            name = theme.display(again["method"])
            parts.append(f"{name}, which differs by chance alone, has {theme.number(again['worst'])}× on its worst.")
        edges = [row for row in here if row["edges"]]
        if edges:
            told = [f"{theme.display(row['method'])} ({', '.join(row['edges'])})" for row in edges]
            parts.append(f"Tuned to the edge of their grids: {theme.joined(told)}.")
        for row in timed:
            parts.append(
                f"Against our plain loop, {theme.display(row['method'])} has {theme.number(row['worst'])}× on its "
                f"slowest prompt; timed again and again, {theme.number(row['worst_again'])}× (median)."
            )
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
