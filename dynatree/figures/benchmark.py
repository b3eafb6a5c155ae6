"""The paired benchmark: speedup of every method over autoregressive decoding, worst prompt included."""

from collections.abc import Mapping, Sequence

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import axes, captions, grammar, legends, panels, queries, ranking, theme

TABLES: tuple[str, ...] = ("benchmark",)
SECTION = "Speed"

BASELINE = "transformers"
WIDTH = 330
HEIGHT = 190


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A column per kind of text: geometric means over all data sets, intervals, and each method's worst prompt; below,
    the same by quarter of the output.
    """
    rows = queries.rows(tables, "benchmark", dataset="all", baseline=BASELINE)
    whole = [row for row in rows if row["part"] == "whole"]
    methods = theme.ordered(row["method"] for row in whole)
    texts = list(dict.fromkeys(row["text"] for row in whole))
    axis = ("speedup over transformers' generate (×)", ranking.scale(whole))
    columns = []
    for text in texts:
        here = [row | {"words": grammar.number(row["value"])} for row in whole if row["text"] == text]
        prompts, repeated = here[0]["prompts"], here[0]["repetition"]
        title = alt.TitleParams(text, subtitle=f"{grammar.plural(prompts, 'prompt')}, {repeated:.0%} repeated verbatim")
        columns.append(ranking.panel(here, methods, axis, WIDTH, title, labelled=text == texts[0]))
    key = legends.boxes(ranking.KEY, 2 * WIDTH)
    return theme.finish(alt.vconcat(key, alt.hconcat(*columns, spacing=24), *_along(rows, texts), spacing=20))


def _along(rows: Sequence[queries.Row], texts: Sequence[str]) -> list[alt.HConcatChart]:
    """Lines along the output, a panel per kind of text; none where no quarter was long enough to be timed."""
    found = [
        row | {"x": axes.QUARTERS[row["part"]], "label": theme.display(row["method"])}
        for method in theme.ordered(row["method"] for row in rows)
        for row in rows
        if row["method"] == method and method not in queries.UNDRAFTED and row["part"] in axes.QUARTERS
    ]
    if not found:
        return []
    columns = []
    for text in texts:
        here = [row for row in found if row["text"] == text]
        # A logarithmic axis has few ticks on a short range.
        wide = max(row["value"] for row in here) > 2.5 * min(row["value"] for row in here)
        axis = axes.values("speedup (×)", here, one=True, log=wide)
        columns.append(panels.lines(here, axes.percents(), axis, (WIDTH * 0.72, HEIGHT), title=text, one=True))
    return [alt.hconcat(*columns, spacing=24)]


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each kind of text, by how much and over whom, its worst prompt and its quarters."""
    rows = queries.rows(tables, "benchmark", dataset="all", baseline=BASELINE)
    every = queries.rows(tables, "benchmark", dataset="all", part="whole")
    parts = [
        "All methods decode each prompt side by side in one process; dots are geometric means, ticks the worst prompt."
    ]
    for text in dict.fromkeys(row["text"] for row in rows):
        here = [row for row in rows if (row["text"], row["part"]) == (text, "whole")]
        ranked = sorted((row for row in here if row["method"] not in queries.UNDRAFTED), key=lambda row: -row["value"])
        if ranked:
            parts.append(_fastest(text, ranked[0]))
            parts += _over_others(ranked, [row for row in every if row["text"] == text])
            parts += _quarters(ranked[0], [row for row in rows if row["text"] == text])
        again = next((row for row in here if row["method"] == queries.AGAIN), None)
        if again:
            name = theme.display(again["method"])
            parts.append(
                f"{name}, which differs by chance alone, has {grammar.number(again['worst'])}× on its worst prompt."
            )
        edges = [row for row in here if row["edges"]]
        if edges:
            told = [f"{theme.display(row['method'])} ({', '.join(row['edges'])})" for row in edges]
            parts.append(f"Tuned to the edge of their grids: {grammar.joined(told)}.")
        for row in [row for row in every if row["text"] == text and row["worst_again"] is not None]:
            parts.append(
                f"Against our own autoregressive decoding, {theme.display(row['method'])} has "
                f"{grammar.number(row['worst'])}× on its slowest prompt; timed again several times, "
                f"{grammar.number(row['worst_again'])}× (median)."
            )
    return " ".join([*parts, f"{captions.intervals(rows).capitalize()}."])


def _fastest(text: str, best: queries.Row) -> str:
    name = theme.display(best["method"])
    given = f"{grammar.interval(best, '×')} transformers' `generate` ({captions.verdict(best)}) and "
    given += f"{grammar.number(best['worst'])}× on its worst prompt"
    if best["value"] <= 1:
        return f"On {text} text no method beats it; closest is {name}, {given}."
    return f"On {text} text {name} is fastest, {given}."


def _over_others(ranked: Sequence[queries.Row], every: Sequence[queries.Row]) -> list[str]:
    """The fastest over each other method that drafts, prompt by prompt, the closest first."""
    best, *others = ranked
    over = {row["baseline"]: row for row in every if row["method"] == best["method"]}
    told = [(theme.display(row["method"]), over[row["method"]]) for row in others if row["method"] in over]
    if not told:
        return []
    clauses = [
        f"{grammar.interval(row, '×')} that of {name}{'' if row['significant'] else ' (inconclusive)'}"
        for name, row in told
    ]
    return [f"Prompt by prompt its speed is {'; '.join(clauses)}."]


def _quarters(best: queries.Row, rows: Sequence[queries.Row]) -> list[str]:
    own = {row["part"]: row["value"] for row in rows if row["method"] == best["method"]}
    values = [f"{grammar.number(own[part])}×" for part in axes.QUARTERS if part in own]
    return [f"In the four quarters of an output it has {grammar.joined(values)}."] if len(values) > 1 else []
