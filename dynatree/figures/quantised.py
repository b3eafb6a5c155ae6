"""What exactness in float32 costs beside an engine on 4-bit weights: the benchmark's speeds over llama.cpp's.

Knows no record.
"""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import captions, grammar, legends, queries, ranking, theme

TABLES: tuple[str, ...] = ("quantised",)
SECTION = "Speed"

BASELINE, OTHERS = "llama_cpp", "llama_cpp_lookup"
OURS = "dynatree"
WIDTH = 420


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """Each method's speed over llama.cpp's autoregressive decoding, and its tokens/s."""
    rows = queries.rows(tables, "quantised", dataset="all", part="whole", baseline=BASELINE)
    shown = [
        row | {"words": f"{grammar.number(row['value'])} ({grammar.number(row['throughput'])} tokens/s)"}
        for row in rows
    ]
    methods = theme.ordered(row["method"] for row in rows)
    title = alt.TitleParams("greedy text", subtitle=grammar.plural(rows[0]["prompts"], "prompt"))
    axis = ("speed over llama.cpp's greedy decoding with 4-bit weights (×)", ranking.scale(rows, room=2.2))
    return theme.finish(
        alt.vconcat(legends.boxes(ranking.KEY, WIDTH), ranking.panel(shown, methods, axis, WIDTH, title))
    )


def caption(tables: Mapping[str, pa.Table]) -> str:
    """How DynaTree compares with llama.cpp's faster way, what each reads, and how far their outputs agree."""
    rows = queries.rows(tables, "quantised", dataset="all", part="whole")
    over = {(row["method"], row["baseline"]): row for row in rows}
    engine = max((over[name, BASELINE] for name in (BASELINE, OTHERS)), key=lambda row: row["value"])
    name = theme.display(engine["method"])
    parts = [
        "Greedy decoding of the same prompts here and by another engine on 4-bit weights, which may write another text "
        f"({over[BASELINE, BASELINE]['identical']:.0%} of its outputs are those of the weights in float32)."
    ]
    if (OURS, engine["method"]) in over:
        own = over[OURS, engine["method"]]
        parts.append(
            f"{theme.display(OURS)} has {grammar.interval(own, '×')} the speed of {name} ({captions.verdict(own)}), "
            f"the faster of llama.cpp's two, and {grammar.interval(over[OURS, BASELINE], '×')} that of its "
            "autoregressive decoding."
        )
    ours = over["autoregressive", BASELINE]
    parts.append(
        f"An autoregressive step reads {_size(rows, True)} MB there and {_size(rows, False)} MB here, "
        f"{grammar.number(ours['weight_bytes'] / over[BASELINE, BASELINE]['weight_bytes'])} times as much: "
        f"autoregressive decoding here has {grammar.interval(ours, '×')} the speed of that there."
    )
    return " ".join([*parts, f"{captions.intervals(rows).capitalize()}."])


def _size(rows: list[queries.Row], few: bool) -> str:
    size = (min if few else max)(row["weight_bytes"] for row in rows)
    return grammar.number(size / 1e6)
