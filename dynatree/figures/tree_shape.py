"""Speedup by the shape of the tree: depth D, branch B and pruning tau, one at a time, and D with B as a heat map.

Drawn is the method that was run with several settings; the others are level lines beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import axes, captions, grammar, heat, legends, marks, panels, queries, theme

TABLES: tuple[str, ...] = ("summary", "runs")
SECTION = "Settings"

EXPERIMENT = "tree_shape"
KNOBS = {"D": "depth D", "B": "branch B", "tau": "pruning tau"}
ACROSS, DOWN = "D", "B"
SIZE = (185, 140)


class Shapes(NamedTuple):
    """One data set's speedups: rows of the method with several settings (`knobs` read), and those of the others."""

    title: str
    swept: list[queries.Row]
    steady: list[queries.Row]


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """Per data set a panel per knob and a heat map, two per line. Raises UserError if no knob has two values."""
    found, runs = _found(tables), queries.rows(tables, "runs", experiment=EXPERIMENT)
    everything = [row for shapes in found for row in shapes.swept + shapes.steady]
    singles = marks.singles([row for shapes in found for row in shapes.swept], tables)
    axis = axes.values("speedup (×)", [*everything, *singles], one=True)
    blocks = []
    for shapes in found:
        charts: list[theme.Layers] = []
        for knob in KNOBS:
            if line := _line(shapes.swept, knob):
                charts.append(_panel(knob, line, marks.singles(line, tables), shapes, axis))
        if _grid(shapes.swept):
            charts.append(_heat(_grid(shapes.swept), runs))
        head = f"{shapes.title} ({captions.prompts(shapes.swept)})"
        blocks.append(alt.concat(*charts, columns=2, spacing=16).properties(title=head))
    methods = theme.ordered(row["method"] for row in everything)
    entries = [(theme.display(method), theme.colour(method), theme.colour(method)) for method in methods]
    if any(_grid(shapes.swept) for shapes in found):
        entries.append(("cell: significantly slower than the best", heat.APART, heat.APART))
    key = legends.boxes([*entries, *legends.significance(everything, singles)], 2 * SIZE[0] + 100)
    return theme.finish(alt.vconcat(key, *blocks))


def _panel(
    knob: str, line: Sequence[queries.Row], singles: Sequence[queries.Row], shapes: Shapes, axis: axes.Values
) -> theme.Layers:
    names = [grammar.knob_value(row["knobs"][knob]) for row in line]
    points, small = (
        [_without_knobs(row) | {"x": grammar.knob_value(row["knobs"][knob]), "label": row["method"]} for row in rows]
        for rows in (line, singles)
    )
    x = alt.X(
        "x:O",
        sort=names,
        scale=alt.Scale(type="point", domain=names, padding=0.4),
        axis=alt.Axis(title=KNOBS[knob], labelAngle=0),
    )
    held = grammar.knob_text({name: value for name, value in line[0]["knobs"].items() if name != knob})
    title = alt.TitleParams(held, fontSize=theme.SMALL, fontWeight="normal", color=theme.QUIET)
    return panels.lines(
        points, x, axis, SIZE, title=title, one=True, labelled=False, steady=shapes.steady, singles=small
    )


def _heat(cells: Sequence[queries.Row], runs: Sequence[queries.Row]) -> theme.Layers:
    """The grid's speedups as numbers, on a neutral ground but where they are significantly below the best."""
    best = max(cells, key=lambda row: row["value"])
    shown = [
        {"across": row["knobs"][ACROSS], "down": row["knobs"][DOWN], "words": grammar.number(row["value"])}
        | {"tone": heat.APART if row is not best and _slower(row, best, runs) else heat.NEUTRAL}
        for row in cells
    ]
    columns = sorted({row["across"] for row in shown}, key=queries.knob_key)
    lines = sorted({row["down"] for row in shown}, key=queries.knob_key, reverse=True)
    held = grammar.knob_text({name: value for name, value in best["knobs"].items() if name not in (ACROSS, DOWN)})
    title = alt.TitleParams(f"speedup, {held}", fontSize=theme.SMALL, fontWeight="normal", color=theme.QUIET)
    return heat.panel(shown, (columns, KNOBS[ACROSS]), (lines, KNOBS[DOWN]), SIZE, title)


def _slower(row: queries.Row, best: queries.Row, runs: Sequence[queries.Row]) -> bool:
    """Whether a row is below the best by more than chance, prompt by prompt."""
    return bool(captions.paired(row, best, runs)["differs"])


def _found(tables: Mapping[str, pa.Table]) -> list[Shapes]:
    rows = [
        row | {"knobs": queries.knobs(row["settings"])}
        for row in queries.rows(tables, "summary", experiment=EXPERIMENT, metric="speedup")
        if row["method"] != queries.AUTOREGRESSIVE and row["value"] is not None
    ]
    result = []
    for title, here in queries.places(rows, "prompt_tokens", "batch", "dtype"):
        count = Counter(row["method"] for row in here)
        method = max(theme.ordered(count), key=lambda name: count[name])
        swept = [row for row in here if row["method"] == method]
        if any(_line(swept, knob) for knob in KNOBS):
            result.append(Shapes(title, swept, [_without_knobs(row) for row in here if row["method"] != method]))
    if not result:
        raise UserError(f"{EXPERIMENT}: no method was run with two values of {', '.join(KNOBS)}")
    return result


def _without_knobs(row: queries.Row) -> queries.Row:
    return {key: value for key, value in row.items() if key != "knobs"}


def _line(rows: Sequence[queries.Row], knob: str) -> list[queries.Row]:
    """Rows that differ in `knob` alone, by its size; of several such lines the longest, then the one most usual.

    Empty where no two rows differ in the knob alone.
    """
    rows = [row for row in rows if knob in row["knobs"]]
    lines: dict[tuple[tuple[str, str], ...], list[queries.Row]] = {}
    for row in rows:
        lines.setdefault(tuple(item for item in row["knobs"].items() if item[0] != knob), []).append(row)
    often = Counter(item for row in rows for item in row["knobs"].items())
    best = max(lines, key=lambda held: (len(lines[held]), sum(often[item] for item in held)), default=())
    line = sorted(lines.get(best, []), key=lambda row: queries.knob_key(row["knobs"][knob]))
    return line if len(line) > 1 else []


def _grid(rows: Sequence[queries.Row]) -> list[queries.Row]:
    """Rows that differ in ACROSS and DOWN alone, the other knobs at their most frequent values; empty if no grid."""
    held = Counter(tuple(i for i in row["knobs"].items() if i[0] not in (ACROSS, DOWN)) for row in rows)
    usual = held.most_common(1)[0][0]
    cells = [r for r in rows if tuple(i for i in r["knobs"].items() if i[0] not in (ACROSS, DOWN)) == usual]
    sizes = [len({row["knobs"].get(knob) for row in cells}) for knob in (ACROSS, DOWN)]
    return cells if min(sizes) > 1 and len(cells) > sum(sizes) - 1 else []


def caption(tables: Mapping[str, pa.Table]) -> str:
    """The best shape against the next, the level lines and autoregressive decoding; per knob the best and the worst."""
    found, runs = _found(tables), queries.rows(tables, "runs", experiment=EXPERIMENT)
    lists = []
    for shapes in found:
        method = theme.display(shapes.swept[0]["method"])
        best, *others = sorted(shapes.swept, key=lambda row: -row["value"])
        text = f"On {shapes.title}, best of all {len(shapes.swept)} settings of {method}: "
        text += f"{grammar.knob_text(best['knobs'])}, {grammar.interval(best, '×')} ({captions.verdict(best)})"
        sentences = [f"{text}."]
        if best["value"] <= 1:
            sentences.append("No setting beats autoregressive decoding.")
        sentences += [f"{_against(row, best, runs)}." for row in [*shapes.steady, *others[:1]]]
        for knob, name in KNOBS.items():
            if line := _line(shapes.swept, knob):
                top, worst = max(line, key=lambda row: row["value"]), min(line, key=lambda row: row["value"])
                sentences.append(
                    f"{name}: best of {len(line)} values at {grammar.knob_value(top['knobs'][knob])}, "
                    f"worst at {grammar.knob_value(worst['knobs'][knob])} "
                    f"({captions.change(captions.paired(worst, top, runs))})."
                )
        lists.append(sentences)
    return captions.short(captions.in_turn(lists))


def _against(row: queries.Row, best: queries.Row, runs: Sequence[queries.Row]) -> str:
    """How a row compares with the best setting: the next best setting, or a level line."""
    name = (
        theme.display(row["method"]) if row["method"] != best["method"] else f"Next {grammar.knob_text(row['knobs'])}"
    )
    compared = captions.change(captions.paired(row, best, runs))
    return f"{name} has {grammar.interval(row, '×')}, against it {compared}"
