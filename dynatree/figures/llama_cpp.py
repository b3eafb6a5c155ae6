"""Beside another engine, llama.cpp: speeds over it without speculation by kind of text, and times of forwards.

Knows no record.
"""

from collections.abc import Mapping, Sequence

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import axes, captions, grammar, legends, panels, queries, ranking, theme

TABLES: tuple[str, ...] = ("llama_cpp", "llama_cpp_costs")
SECTION = "Speed"

BASELINE = "llama_cpp"
OURS = ("autoregressive", "dynatree")
WIDTH, COLUMNS = 330, 2
SIZE = (460, 210)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A panel per kind of text: each method's speed over llama.cpp without speculation, and its tokens/s; below, the
    time of a forward by its tokens.
    """
    rows = queries.rows(tables, "llama_cpp", dataset="all", part="whole", baseline=BASELINE)
    methods = theme.ordered(row["method"] for row in rows)
    texts = list(dict.fromkeys(row["text"] for row in rows))
    axis = ("speed over llama.cpp without speculation (×)", ranking.scale(rows, room=2.4))
    charts = []
    for place, text in enumerate(texts):
        here = [row for row in rows if row["text"] == text]
        shown = [
            row | {"words": f"{grammar.number(row['value'])} ({grammar.number(row['throughput'])} tokens/s)"}
            for row in here
        ]
        charts.append(ranking.panel(shown, methods, axis, WIDTH, labelled=place % COLUMNS == 0))
    key = legends.boxes(ranking.KEY, COLUMNS * WIDTH)
    lines = [alt.hconcat(*charts[at : at + COLUMNS], spacing=24) for at in range(0, len(charts), COLUMNS)]
    return theme.finish(alt.vconcat(key, *lines, _costs(tables), spacing=20))


def _costs(tables: Mapping[str, pa.Table]) -> theme.Layers:
    """Milliseconds of a forward over so many tokens, a line an engine or format; as many as were timed of both."""
    curves = _curves(tables)
    points = [
        {"x": row["tokens"], "value": row["ms"], "low": None, "high": None, "significant": None}
        | {"method": engine, "label": _engine(engine)}
        for engine, curve in curves.items()
        for row in curve
    ]
    most = max(row["x"] for row in points)
    x = alt.X(
        "x:Q",
        scale=alt.Scale(type="log", base=2, domain=[0.95, most * 1.05], nice=False),
        axis=alt.Axis(title="new tokens in one forward", values=[2**i for i in range(most.bit_length())]),
    )
    context = next(iter(curves.values()))[0]["context"]
    title = alt.TitleParams("Time of a forward", subtitle=f"after {grammar.plural(context, 'token')}")
    return panels.lines(points, x, axes.values("ms, median", points, log=True), SIZE, title=title)


def _curves(tables: Mapping[str, pa.Table]) -> dict[str, list[queries.Row]]:
    """By engine, llama.cpp first: its rows by tokens, as far as llama.cpp's go."""
    rows = queries.rows(tables, "llama_cpp_costs")
    most = max(row["tokens"] for row in queries.rows(tables, "llama_cpp_costs", engine=BASELINE))
    return {
        engine: sorted(
            (row for row in rows if row["engine"] == engine and row["tokens"] <= most), key=lambda row: row["tokens"]
        )
        for engine in theme.ordered(row["engine"] for row in rows)
    }


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Of each kind of text how DynaTree compares with llama.cpp's fastest way; forwards; weights; what was tuned."""
    rows = queries.rows(tables, "llama_cpp", dataset="all", part="whole")
    texts = {text: [row for row in rows if row["text"] == text] for text in dict.fromkeys(row["text"] for row in rows)}
    ours = next(row for row in rows if row["dtype"])
    theirs = next(row for row in rows if not row["dtype"])
    weights = f"Weights: {_size(theirs)} MB in llama.cpp, {_size(ours)} MB here ({ours['dtype']})."
    edges = [edge for text, here in texts.items() for edge in _edges(text, here)]
    parts = [_text(text, here) for text, here in texts.items()]
    return captions.short(
        [*parts, _forwards(_curves(tables)), weights, *edges, f"{captions.intervals(rows).capitalize()}."]
    )


def _text(text: str, rows: Sequence[queries.Row]) -> str:
    """DynaTree, or else what is there of ours, over llama.cpp's fastest way."""
    over = {(row["method"], row["baseline"]): row for row in rows}
    fastest = next(row["baseline"] for row in rows if row["of_fastest"])
    own = next(row for name in reversed(OURS) if (row := over.get((name, fastest))))
    return (
        f"{text.capitalize()}: {theme.display(own['method'])} {grammar.interval(own, '×')} "
        f"({captions.judged(own['significant'])}) over {theme.display(fastest)}."
    )


def _edges(text: str, rows: Sequence[queries.Row]) -> list[str]:
    """What was tuned to the edge of its grid."""
    found = [row for row in rows if row["edges"] and row["baseline"] == BASELINE]
    named = [f"{theme.display(row['method'])} ({', '.join(row['edges'])})" for row in found]
    return [f"{text.capitalize()}: at the edge of their grids {grammar.joined(named)}."] if named else []


def _forwards(curves: Mapping[str, Sequence[queries.Row]]) -> str:
    told = []
    for engine, curve in curves.items():
        by_tokens = {row["tokens"]: row["ms"] for row in curve}
        wide = next((n for n in (8, 4, 2) if n in by_tokens), 1)
        told.append(f"{by_tokens[wide] / by_tokens[1]:.1f} times by {_engine(engine)}")
    return f"A forward over {wide} tokens takes that over one {grammar.joined(told)}."


def _engine(engine: str) -> str:
    return theme.display(engine) if engine == BASELINE else f"ours, {engine}"


def _size(row: queries.Row) -> str:
    return grammar.number(row["weight_bytes"] / 1e6)
