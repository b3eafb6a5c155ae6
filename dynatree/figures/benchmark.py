"""The paired benchmark: speedup of every method over autoregressive decoding, worst prompt included."""

from collections.abc import Mapping, Sequence

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import axes, captions, grammar, legends, panels, queries, ranking, theme

TABLES: tuple[str, ...] = ("benchmark",)
SECTION = "Speed"

BASELINE = "transformers"
WIDTH, ABREAST = 290, 2  # of a kind of text, and how many stand side by side
HEIGHT = 190


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A column per kind of text and format: geometric means over all data sets, intervals, and each method's worst
    prompt; below, the same by quarter of the output.
    """
    rows = _rows(tables, baseline=BASELINE)
    whole = [row for row in rows if row["part"] == "whole"]
    methods = theme.ordered(row["method"] for row in whole)
    texts = list(dict.fromkeys(row["text"] for row in whole))
    columns: list[theme.Layers] = []
    for text in texts:
        here = [row | {"words": grammar.number(row["value"])} for row in whole if row["text"] == text]
        # Kinds of text differ by so much that on one axis the slower ones would lie on one another.
        axis = ("speedup over transformers' generate (×)", ranking.scale(here))
        columns.append(ranking.panel(here, methods, axis, WIDTH, labelled=len(columns) % ABREAST == 0))
    key = legends.boxes(ranking.KEY, ABREAST * WIDTH + 150)
    return theme.finish(
        alt.vconcat(key, alt.concat(*columns, columns=ABREAST, spacing=24), *_along(rows, texts), spacing=20)
    )


def _rows(tables: Mapping[str, pa.Table], **conditions: str) -> list[queries.Row]:
    """Those over all data sets; where there are several formats, kinds of text are called by theirs, too."""
    rows = queries.rows(tables, "benchmark", dataset="all", **conditions)
    if len({row["dtype"] for row in rows}) > 1:
        for row in rows:
            own, row["text"] = row["text"], f"{row['text']} ({row['dtype']})"
            row["kind"] = row["text"] if row["kind"] == own else row["kind"]
    return rows


def _along(rows: Sequence[queries.Row], texts: Sequence[str]) -> list[alt.ConcatChart]:
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
        size, title = (WIDTH * 0.75, HEIGHT), f"{text}, along the output"
        columns.append(panels.lines(here, axes.percents(), axis, size, title=title, one=True))
    return [alt.concat(*columns, columns=ABREAST, spacing=24)]


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each kind of text, by how much and over whom, its worst prompt and its quarters."""
    rows, every = _rows(tables, baseline=BASELINE), _rows(tables, part="whole")
    lists = []
    for text in dict.fromkeys(row["text"] for row in rows):
        here = [row for row in rows if (row["text"], row["part"]) == (text, "whole")]
        ranked = sorted((row for row in here if row["method"] not in queries.UNDRAFTED), key=lambda row: -row["value"])
        told = []
        if ranked:
            told.append(_fastest(text, ranked[0]))
            told += _over_next(text, ranked, every) + _quarters(text, ranked[0], rows)
        again = next((row for row in here if row["method"] == queries.AGAIN), None)
        if again:
            worst = grammar.number(again["worst"])
            told.append(
                f"{theme.display(again['method'])} differs by chance alone: {worst}× on its worst {text} prompt."
            )
        lists.append(told)
    return captions.short(captions.in_turn(lists))


def _fastest(text: str, best: queries.Row) -> str:
    name = theme.display(best["method"])
    given = f"{grammar.interval(best, '×')} transformers' speed ({captions.verdict(best)}), "
    given += f"{grammar.number(best['worst'])}× on its worst prompt"
    if best["value"] <= 1:
        return f"On {text} text no method beats it; closest is {name}, {given}."
    return f"On {text} text {name} is fastest, {given}."


def _over_next(text: str, ranked: Sequence[queries.Row], every: Sequence[queries.Row]) -> list[str]:
    """The fastest over the one of the other methods that it leads by least, prompt by prompt."""
    best, *others = ranked
    over = [
        row
        for row in every
        if (row["text"], row["method"]) == (text, best["method"])
        and row["baseline"] in {other["method"] for other in others}
    ]
    if not over:
        return []
    closest = min(over, key=lambda row: row["value"])
    name, judged = theme.display(closest["baseline"]), captions.judged(closest["significant"])
    own = f"On {text} text {theme.display(best['method'])}"
    return [f"{own} has {grammar.interval(closest, '×')} the speed of {name}, prompt by prompt ({judged})."]


def _quarters(text: str, best: queries.Row, rows: Sequence[queries.Row]) -> list[str]:
    own = {row["part"]: row["value"] for row in rows if (row["text"], row["method"]) == (text, best["method"])}
    values = [f"{grammar.number(own[part])}×" for part in axes.QUARTERS if part in own]
    return [f"By quarters of {text} output it has {grammar.joined(values)}."] if len(values) > 1 else []
