"""How every figure looks: a colour, a name and a place per method, fonts, marks. Knows no figure and reads no table."""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import altair as alt

# Where lines are of formats and not of methods: the fewer bits the darker, of ColorBrewer's blues.
FORMATS = {
    "float64": "#c6dbef",
    "float32": "#9ecae1",
    "bfloat16": "#6baed6",
    "float16": "#4292c6",
    "int8": "#2171b5",
    "int4": "#08306b",
}
# Okabe and Ito's colours (2008), told apart with every common colour blindness; spare ones from Tol's muted scheme
COLOURS = {
    "autoregressive": "#7a7a7a",
    "autoregressive_again": "#b5b5b5",
    "transformers": "#222222",
    "transformers_torch": "#8c564b",
    "assisted": "#e69f00",
    "prompt_lookup": "#56b4e9",
    "linear": "#0072b2",
    "hybrid_chain": "#332288",
    "fixed_tree": "#009e73",
    "fixed_d5_b2": "#009e73",
    "optimal": "#882255",
    "confidence": "#999933",
    "llama_cpp": "#661100",
    "llama_cpp_lookup": "#ddcc77",
    "llama_cpp_draft": "#cc6677",
    "dynatree_threshold": "#cc79a7",
    "dynatree_reading": "#8c3d00",
    "dynatree": "#d55e00",
    **FORMATS,
}
SPARE = ("#44aa99", "#aa4499")
# What a round consists of, in colours that no method has.
PHASES = {"verify": "#5b4636", "draft": "#8fb0dc", "select": "#b5936b", "cache": "#b5936b"}
# What a phase takes besides forwards of the models; `other` lies between phases.
BESIDES = {"draft": "#6fc7b7", "select": "#b5936b", "verify": "#a58fd0", "cache": "#e8a5a0", "other": "#dadada"}
NAMES = {
    "autoregressive": "Autoregressive",
    "autoregressive_again": "Autoregressive again",
    "transformers": "Transformers",
    "transformers_torch": "Transformers, torch's forward",
    "assisted": "Assisted (HF)",
    "prompt_lookup": "Prompt lookup (HF)",
    "linear": "Linear chain",
    "hybrid_chain": "Chain, hybrid drafter",
    "fixed_tree": "Fixed tree",
    "fixed_d5_b2": "Fixed tree, D 5, B 2",
    "optimal": "Optimal static tree",
    "confidence": "Confidence rules",
    "llama_cpp": "llama.cpp",
    "llama_cpp_lookup": "llama.cpp, lookup",
    "llama_cpp_draft": "llama.cpp, draft model",
    "dynatree_threshold": "DynaTree, threshold",
    "dynatree_reading": "DynaTree, reading drafter",
    "dynatree": "DynaTree",
}
SHAPES = ("circle", "diamond", "square", "triangle-up", "cross")
INK, QUIET, FAINT = "#222222", "#6b6b6b", "#e6e6e6"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
MONO = "Liberation Mono, DejaVu Sans Mono, Courier New, monospace"
TEXT, SMALL = 13, 11

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


def on_white(chart: alt.Chart, dx: float) -> alt.LayerChart:
    """The texts of `chart`, `dx` pixels right of its points, or left of them where `dx` is negative.

    On a white edge, so that they can be read where a rule or a grid line crosses them.
    """
    align: Literal["left", "right"] = "left" if dx > 0 else "right"
    edge = chart.mark_text(align=align, dx=dx, stroke="white", strokeWidth=4, strokeJoin="round")
    return edge + chart.mark_text(align=align, dx=dx, color=INK)


def finish(chart: Any) -> Any:
    """The chart with the project's fonts, axes and white ground; applied once, to the whole."""
    # At once: each `configure_...` copies all of the chart.
    config = alt.Config(
        background="white",
        font=FONT,
        padding=8,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelFontSize=SMALL,
            titleFontSize=SMALL + 1,
            titleFontWeight="normal",
            titleColor=INK,
            labelColor=INK,
            domainColor=QUIET,
            tickColor=QUIET,
            gridColor=FAINT,
            labelLimit=260,
        ),
        title=alt.TitleConfig(fontSize=TEXT, anchor="start", color=INK, subtitleColor=QUIET, subtitleFontSize=SMALL),
        text=alt.MarkConfig(fontSize=SMALL),
        concat=alt.CompositionConfig(spacing=14),
    )
    return chart.properties(config=config)
