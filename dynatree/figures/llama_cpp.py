"""Beside another engine, llama.cpp: speeds over its plain decoding by kind of text, and times of forwards.

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
    """A panel per kind of text: each method's speed over llama.cpp's plain decoding, and its tokens/s; below, the time
    of a forward by its tokens.
    """
    rows = queries.rows(tables, "llama_cpp", dataset="all", part="whole", baseline=BASELINE)
    methods = theme.ordered(row["method"] for row in rows)
    texts = list(dict.fromkeys(row["text"] for row in rows))
    axis = ("speed over llama.cpp's plain decoding (×)", ranking.scale(rows, room=2.4))
    charts = []
    for place, text in enumerate(texts):
        here = [row for row in rows if row["text"] == text]
        shown = [
            row | {"words": f"{grammar.number(row['value'])} ({grammar.number(row['throughput'])} tokens/s)"}
            for row in here
        ]
        title = alt.TitleParams(text, subtitle=grammar.plural(here[0]["prompts"], "prompt"))
        charts.append(ranking.panel(shown, methods, axis, WIDTH, title, labelled=place % COLUMNS == 0))
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
    title = alt.TitleParams("Time of a forward", subtitle=f"behind {grammar.plural(context, 'token')}")
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
    """Of each kind of text llama.cpp's fastest way and how ours compare with it; weights; forwards."""
    rows = queries.rows(tables, "llama_cpp", dataset="all", part="whole")
    ours = next(row for row in rows if row["dtype"])
    theirs = next(row for row in rows if not row["dtype"])
    parts = [
        f"The same prompts decoded by llama.cpp, whose weights take {_size(theirs)} MB, and here in {ours['dtype']} "
        f"({_size(ours)} MB with the embedding). Outputs may differ, and drawn ones do: speeds alone are compared."
    ]
    for text in dict.fromkeys(row["text"] for row in rows):
        parts += _text(text, [row for row in rows if row["text"] == text])
    parts.append(_forwards(_curves(tables)))
    return " ".join([*parts, f"{captions.intervals(rows).capitalize()}."])


def _text(text: str, rows: Sequence[queries.Row]) -> list[str]:
    """Sentences on one kind of text."""
    over = {(row["method"], row["baseline"]): row for row in rows}
    fastest = next(row["baseline"] for row in rows if row["of_fastest"])
    if fastest == BASELINE:
        told = "llama.cpp is fastest without speculation"
    else:
        told = f"llama.cpp's fastest way is {theme.display(fastest)}"
        told += f" ({grammar.interval(over[fastest, BASELINE], '×')} its plain decoding)"
    compared = [
        f"{theme.display(name)} has {grammar.interval(row, '×')} ({captions.verdict(row)})"
        for name in OURS
        if (row := over.get((name, fastest)))
    ]
    same = over[BASELINE, BASELINE]["identical"]
    agreed = "" if same is None else f"; {same:.0%} of its plain outputs are those of ours"
    found = [f"On {text} text {told}; over that {grammar.joined(compared)}{agreed}."]
    if edges := [row for row in rows if row["edges"] and row["baseline"] == BASELINE]:
        named = [f"{theme.display(row['method'])} ({', '.join(row['edges'])})" for row in edges]
        found.append(f"Tuned to the edge of their grids: {grammar.joined(named)}.")
    return found


def _forwards(curves: Mapping[str, Sequence[queries.Row]]) -> str:
    told = []
    for engine, curve in curves.items():
        by_tokens = {row["tokens"]: row["ms"] for row in curve}
        widths = [f"{by_tokens[n] / by_tokens[1]:.2f} times that over {n}" for n in (8, 64) if n in by_tokens]
        told.append(f"{by_tokens[1]:.1f} ms by {_engine(engine)} ({grammar.joined(widths)})")
    return f"A forward over one token takes {grammar.joined(told)}."


def _engine(engine: str) -> str:
    return theme.display(engine) if engine == BASELINE else f"ours, {engine}"


def _size(row: queries.Row) -> str:
    return grammar.number(row["weight_bytes"] / 1e6)
