"""Speedup by the shape of the tree: depth D, branch B and pruning tau, one at a time, and D with B as a heat map.

Drawn is the method that was run with several settings; the others are level lines beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import axes, captions, grammar, heat, legends, panels, queries, theme

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
    found = _found(tables)
    everything = [row for shapes in found for row in shapes.swept + shapes.steady]
    axis = axes.values("speedup (×)", everything, one=True)
    blocks = []
    for shapes in found:
        charts: list[theme.Layers] = []
        for knob in KNOBS:
            if line := _line(shapes.swept, knob):
                charts.append(_panel(knob, line, shapes, axis))
        if _grid(shapes.swept):
            charts.append(_heat(_grid(shapes.swept)))
        head = f"{shapes.title} ({captions.prompts(shapes.swept)})"
        blocks.append(alt.concat(*charts, columns=2, spacing=16).properties(title=head))
    methods = theme.ordered(row["method"] for row in everything)
    entries = [(theme.display(method), theme.colour(method), theme.colour(method)) for method in methods]
    key = legends.boxes([*entries, *legends.SIGNIFICANCE], 2 * SIZE[0] + 70)
    return theme.finish(alt.vconcat(key, *blocks))


def _panel(knob: str, line: Sequence[queries.Row], shapes: Shapes, axis: axes.Values) -> theme.Layers:
    names = [grammar.knob_value(row["knobs"][knob]) for row in line]
    points = [_without_knobs(row) | {"x": name, "label": row["method"]} for row, name in zip(line, names, strict=True)]
    x = alt.X(
        "x:O",
        sort=names,
        scale=alt.Scale(type="point", domain=names, padding=0.4),
        axis=alt.Axis(title=KNOBS[knob], labelAngle=0),
    )
    held = grammar.knob_text({name: value for name, value in line[0]["knobs"].items() if name != knob})
    title = alt.TitleParams(held, fontSize=theme.SMALL, fontWeight="normal", color=theme.QUIET)
    return panels.lines(points, x, axis, SIZE, title=title, one=True, labelled=False, steady=shapes.steady)


def _heat(cells: Sequence[queries.Row]) -> theme.Layers:
    """The grid's speedups as numbers on their colours; the best is framed."""
    best = max(cells, key=lambda row: row["value"])
    shown = [
        {"across": row["knobs"][ACROSS], "down": row["knobs"][DOWN], "value": row["value"]}
        | {"words": grammar.number(row["value"]), "framed": row is best}
        for row in cells
    ]
    columns = sorted({row["across"] for row in shown}, key=queries.knob_key)
    lines = sorted({row["down"] for row in shown}, key=queries.knob_key, reverse=True)
    held = grammar.knob_text({name: value for name, value in best["knobs"].items() if name not in (ACROSS, DOWN)})
    title = alt.TitleParams(f"speedup, {held}", fontSize=theme.SMALL, fontWeight="normal", color=theme.QUIET)
    scale = min(row["value"] for row in cells), best["value"]
    return heat.panel(shown, (columns, KNOBS[ACROSS]), (lines, KNOBS[DOWN]), scale, SIZE, title)


def _found(tables: Mapping[str, pa.Table]) -> list[Shapes]:
    rows = [
        row | {"knobs": queries.knobs(row["settings"])}
        for row in queries.rows(tables, "summary", experiment=EXPERIMENT, metric="speedup")
        if row["method"] != queries.AUTOREGRESSIVE and row["value"] is not None
    ]
    result = []
    for title, here in queries.places(rows, "prompt_tokens", "batch"):
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
    """Per knob the best and the worst value; the best shape against the level lines and autoregressive decoding."""
    parts = ["Speedup over autoregressive decoding (dashed) on the same prompts by the shape of the tree."]
    found, runs = _found(tables), queries.rows(tables, "runs", experiment=EXPERIMENT)
    for shapes in found:
        method = theme.display(shapes.swept[0]["method"])
        for knob, name in KNOBS.items():
            if line := _line(shapes.swept, knob):
                best, worst = max(line, key=lambda row: row["value"]), min(line, key=lambda row: row["value"])
                parts.append(
                    f"{shapes.title}, {name}: best of {len(line)} values at {grammar.knob_value(best['knobs'][knob])}, "
                    f"{grammar.interval(best, '×')} ({captions.verdict(best)}), worst at "
                    f"{grammar.knob_value(worst['knobs'][knob])}, {grammar.number(worst['value'])}× "
                    f"({captions.change(captions.paired(worst, best, runs))})."
                )
        best, *others = sorted(shapes.swept, key=lambda row: -row["value"])
        text = f"Best of all {len(shapes.swept)} settings of {method} is {grammar.knob_text(best['knobs'])}, "
        text += f"{grammar.interval(best, '×')} ({captions.verdict(best)})"
        against = others[:1] + shapes.steady
        parts.append(text + "".join(f"; {_against(row, best, runs)}" for row in against) + ".")
        if best["value"] <= 1:
            parts.append("No setting beats autoregressive decoding.")
    swept = [row for shapes in found for row in shapes.swept]
    return " ".join([*parts, f"{captions.intervals(swept, lines='lines and bands').capitalize()}."])


def _against(row: queries.Row, best: queries.Row, runs: Sequence[queries.Row]) -> str:
    """How a row compares with the best setting: the next best setting, or a level line."""
    name = (
        theme.display(row["method"]) if row["method"] != best["method"] else f"next {grammar.knob_text(row['knobs'])}"
    )
    compared = captions.change(captions.paired(row, best, runs))
    return f"{name} has {grammar.interval(row, '×')}, against it {compared}"
