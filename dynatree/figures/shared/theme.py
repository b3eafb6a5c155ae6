"""How every figure looks and speaks: one colour and one name per method, fonts, keys, numbers in words.

Knows no figure and reads no file.
"""

import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError

# Okabe and Ito's colours (2008), told apart with every common colour blindness; spare ones from Tol's muted scheme
COLOURS = {
    "autoregressive": "#7a7a7a",
    "autoregressive_again": "#b5b5b5",
    "transformers": "#222222",
    "assisted": "#e69f00",
    "prompt_lookup": "#56b4e9",
    "linear": "#0072b2",
    "hybrid_chain": "#332288",
    "fixed_tree": "#009e73",
    "fixed_d5_b2": "#009e73",
    "optimal": "#44aa99",
    "confidence": "#999933",
    "llama_cpp": "#661100",
    "llama_cpp_lookup": "#ddcc77",
    "dynatree_threshold": "#cc79a7",
    "dynatree": "#d55e00",
}
SPARE = ("#882255", "#aa4499")
NAMES = {
    "autoregressive": "Autoregressive",
    "autoregressive_again": "Autoregressive again",
    "transformers": "Transformers greedy",
    "assisted": "Assisted (HF)",
    "prompt_lookup": "Prompt lookup (HF)",
    "linear": "Linear chain",
    "hybrid_chain": "Chain, hybrid drafter",
    "fixed_tree": "Fixed tree",
    "fixed_d5_b2": "Fixed tree, D 5, B 2",
    "optimal": "Optimal static tree",
    "confidence": "Confidence rules",
    "llama_cpp": "llama.cpp, 4 bits",
    "llama_cpp_lookup": "llama.cpp lookup, 4 bits",
    "dynatree_threshold": "DynaTree, threshold",
    "dynatree": "DynaTree",
}
SHAPES = ("circle", "diamond", "square", "triangle-up", "cross")
INK, QUIET, FAINT = "#222222", "#6b6b6b", "#e6e6e6"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
MONO = "Liberation Mono, DejaVu Sans Mono, Courier New, monospace"
TEXT, SMALL = 13, 11

Row = dict[str, Any]
Layers = alt.LayerChart | alt.FacetChart  # what alt.layer gives


def colour(method: str) -> str:
    """The method's colour; an unknown method's depends on its name alone."""
    return COLOURS.get(method) or SPARE[zlib.crc32(method.encode()) % len(SPARE)]


def display(method: str) -> str:
    """The method's name for readers."""
    return NAMES.get(method) or method.replace("_", " ").capitalize()


def ordered(methods: Iterable[str]) -> list[str]:
    """Each method once: the known ones in the order of COLOURS, then the others by name."""
    known = list(COLOURS)
    return sorted(set(methods), key=lambda name: (known.index(name) if name in COLOURS else len(known), name))


def colour_scale(methods: Iterable[str]) -> alt.Scale:
    """Scale from method name to its colour."""
    names = ordered(methods)
    return alt.Scale(domain=names, range=[colour(name) for name in names])


def shape_scale(datasets: Sequence[str]) -> alt.Scale:
    """Scale from data set to the shape of its marks, in the order given."""
    return alt.Scale(domain=list(datasets), range=[SHAPES[place % len(SHAPES)] for place in range(len(datasets))])


def knobs(settings: str) -> dict[str, str]:
    """The knobs in a settings name, in its order: `D8_B3_tau0.03_NNone` -> D: 8, B: 3, tau: 0.03, N: None."""
    value = r"None|True|False|-?\d[\d.]*(?:e[-+]?\d+)?"
    return dict(re.findall(rf"(?:^|_)([A-Za-z]\w*?)({value})(?=_|$)", settings))


def knob_text(values: Mapping[str, str]) -> str:
    """Knobs as readers expect them: `D 8, tau none`."""
    return ", ".join(f"{name} {knob_value(value)}" for name, value in values.items())


def knob_value(value: str) -> str:
    """A knob's value as text; null is `none`."""
    return value.lower() if value in ("None", "True", "False") else value


def labels(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Label per (method, settings), in drawing order; the settings appear where a method has several."""
    found = sorted(set(pairs))
    result = {}
    for method in ordered(name for name, _ in found):
        own = [settings for name, settings in found if name == method]
        for settings in sorted(own, key=lambda text: [knob_key(value) for value in knobs(text).values()]):
            others = [knobs(other) for other in own]
            mine = {k: v for k, v in knobs(settings).items() if any(other.get(k) != v for other in others)}
            suffix = (knob_text(mine) or settings) if len(own) > 1 else ""
            result[method, settings] = f"{display(method)} {suffix}".strip()
    return result


def knob_key(value: str) -> tuple[bool, float, str]:
    """Sorting key: numbers by size, then words."""
    number = re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", value)
    return (not number, float(value) if number else 0.0, value)


def rows(tables: Mapping[str, pa.Table], name: str, **equal: Any) -> list[Row]:
    """Rows of the table `name` whose columns equal the given values. Raises UserError if there are none."""
    if name not in tables:
        raise UserError(f"figure needs the table {name!r}; got {', '.join(sorted(tables)) or 'none'}")
    found = [row for row in tables[name].to_pylist() if all(row[key] == value for key, value in equal.items())]
    if not found:
        wanted = ", ".join(f"{key} = {value}" for key, value in equal.items())
        raise UserError(f"table {name!r} has no rows{' with ' + wanted if wanted else ''}; aggregate some runs first")
    return found


def interval(row: Row, unit: str = "") -> str:
    """Value with its interval, as text: `1.31 [1.20, 1.44]`; the interval only where there is one."""
    text = number(row["value"]) + unit
    return text if row["low"] is None else f"{text} [{number(row['low'])}, {number(row['high'])}]"


def number(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def plural(count: int, thing: str, things: str = "") -> str:
    """`1 prompt`, `4 prompts`; `things` where an s does not do."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def visible(text: str) -> str:
    """A token's text with its white space shown (`·` space, `¶` newline, `→` tab) and nothing unprintable."""
    shown = text.replace(" ", "·").replace("\n", "¶").replace("\t", "→")
    return "".join(c if unicodedata.category(c)[0] not in "CZ" else "\ufffd" for c in shown) or "∅"


def fitting(text: str, pixels: float, size: float = SMALL) -> str:
    """As much of `text` as fits into `pixels` in MONO; cut with an ellipsis, empty if not even two letters fit."""
    room = int(pixels / (0.61 * size))  # a MONO letter is about 0.6 of its size wide
    return text if len(text) <= room else text[: room - 1] + "…" if room >= 3 else ""


def data(found: Sequence[Row]) -> pa.Table:
    """Rows as the table that a chart takes."""
    return pa.Table.from_pylist(list(found))


def words(chart: alt.Chart, dx: float) -> alt.LayerChart:
    """The texts of `chart`, `dx` pixels right of its points, or left of them where `dx` is negative.

    On a white edge, so that they can be read where a rule or a grid line crosses them.
    """
    align: Literal["left", "right"] = "left" if dx > 0 else "right"
    edge = chart.mark_text(align=align, dx=dx, stroke="white", strokeWidth=4, strokeJoin="round")
    return edge + chart.mark_text(align=align, dx=dx, color=INK)


def key(entries: Sequence[tuple[str, str, str]], width: float, size: float = SMALL) -> alt.LayerChart:
    """A legend: (label, fill, stroke) swatches one after another, `width` pixels wide, wrapped where it must."""
    placed: list[Row] = []
    x, line = 0.0, 0
    for label, fill, stroke in entries:
        wide = 18 + 0.54 * size * len(label) + 14
        if x and x + wide > width:
            x, line = 0.0, line + 1
        placed.append({"label": label, "fill": fill, "stroke": stroke, "x": x, "x2": x + 11, "t": x + 16, "line": line})
        x += wide
    for row in placed:
        row["y"], row["y2"], row["middle"] = row["line"] * 17 + 2, row["line"] * 17 + 13, row["line"] * 17 + 8
    high = (line + 1) * 17
    base = alt.Chart(data(placed), width=width, height=high)
    x_scale, y_scale = alt.Scale(domain=[0, width], nice=False), alt.Scale(domain=[high, 0], nice=False)
    y = alt.Y("y:Q", axis=None, scale=y_scale)
    boxes = base.mark_rect(strokeWidth=1).encode(
        x=alt.X("x:Q", axis=None, scale=x_scale),
        x2="x2:Q",
        y=y,
        y2="y2:Q",
        fill=alt.Fill("fill:N", scale=None),
        stroke=alt.Stroke("stroke:N", scale=None),
    )
    words = base.mark_text(align="left", baseline="middle", fontSize=size, color=INK).encode(
        x=alt.X("t:Q", axis=None, scale=x_scale), y=alt.Y("middle:Q", axis=None, scale=y_scale), text="label:N"
    )
    return boxes + words


def shape_key(entries: Sequence[tuple[str, str, str]]) -> alt.LayerChart:
    """A legend of marks in one line: (label, shape, fill)."""
    starts = [0.0]
    for label, _, _ in entries:
        starts.append(starts[-1] + 18 + 0.54 * SMALL * len(label) + 14)
    placed = [
        {"label": label, "shape": shape, "fill": fill, "x": x + 6, "t": x + 16}
        for (label, shape, fill), x in zip(entries, starts, strict=False)
    ]
    scale = alt.Scale(domain=[0, starts[-1]], nice=False)
    base = alt.Chart(data(placed), width=starts[-1], height=18)
    marks = base.mark_point(size=60, opacity=1, stroke=INK, strokeWidth=1.5).encode(
        x=alt.X("x:Q", axis=None, scale=scale),
        shape=alt.Shape("shape:N", scale=None),
        fill=alt.Fill("fill:N", scale=None),
    )
    words = base.mark_text(align="left", color=INK).encode(x=alt.X("t:Q", axis=None, scale=scale), text="label:N")
    return marks + words


def finish(chart: Any) -> Any:
    """The chart with the project's fonts, axes and white ground; applied once, to the whole."""
    return (
        chart.configure(background="white", font=FONT, padding=8)
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=SMALL,
            titleFontSize=SMALL + 1,
            titleFontWeight="normal",
            titleColor=INK,
            labelColor=INK,
            domainColor=QUIET,
            tickColor=QUIET,
            gridColor=FAINT,
            labelLimit=260,
        )
        .configure_title(fontSize=TEXT, anchor="start", color=INK, subtitleColor=QUIET, subtitleFontSize=SMALL)
        .configure_text(fontSize=SMALL)
        .configure_concat(spacing=14)
    )
