"""A drafter on its own: agreement with its target by rank, and the speeds that decoding with it would have."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import captions, grammar, placement, queries, theme

TABLES: tuple[str, ...] = ("drafter",)
SECTION = "Costs"

WIDTH, STEP = 300, 23
SHADES = ("#08306b", "#2171b5", "#6baed6", "#b9d4ea", "#deebf7")  # ColorBrewer's blues, first choice darkest
# Simulated methods by the project's method whose colour they share.
ALIKE = {"chain": "linear", "tree": "optimal"}
LOOKUPS = ("prompt_lookup", "lookup")


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """Left a row per text, a dot per rank; right a row per method, a dot per data set. UserError without rows."""
    simulated = [
        row for row in queries.rows(tables, "drafter", kind="simulated") if row["method"] != queries.AUTOREGRESSIVE
    ]
    agreement = queries.rows(tables, "drafter", kind="agreement")
    height = STEP * len({_label(row) for row in simulated})
    return theme.finish(
        alt.hconcat(_agreement(agreement, height), _speeds(simulated), spacing=30).resolve_scale(
            color="independent", shape="independent"
        )
    )


def _agreement(rows: list[queries.Row], height: int) -> theme.Layers:
    rows = [row | {"name": f"{row['dataset']}, {row['part']}"} for row in rows]
    ranks = sorted({row["rank"] for row in rows})
    ends = [
        {"name": name, "low": min(shares), "high": max(shares)}
        | {"least": f"{min(shares):.0%}", "most": f"{max(shares):.0%}"}
        for name in dict.fromkeys(row["name"] for row in rows)
        for shares in [[row["agreement"] for row in rows if row["name"] == name]]
    ]
    names = [row["name"] for row in ends]
    scale = alt.Scale(domain=[0, 1], nice=False)
    axis = alt.Axis(title="share of positions", format="%", tickCount=5)
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=6))
    shades = alt.Scale(domain=ranks, range=[SHADES[i % len(SHADES)] for i in range(len(ranks))])
    dots = alt.Chart(queries.data(rows)).mark_circle(size=90, opacity=1, stroke=theme.INK, strokeWidth=0.5)
    dots = dots.encode(
        x=alt.X("agreement:Q", scale=scale, axis=axis),
        y=y,
        color=alt.Color(
            "rank:O", scale=shades, legend=alt.Legend(title="among the first", titleOrient="left", orient="top")
        ),
    )
    spans = alt.Chart(queries.data(ends)).encode(y=y)
    x = alt.X("low:Q", scale=scale, axis=axis)
    rules = spans.mark_rule(color=theme.QUIET).encode(x=x, x2="high:Q")
    least = spans.mark_text(align="right", dx=-9, color=theme.INK).encode(x=x, text="least:N")
    most = spans.mark_text(align="left", dx=9, color=theme.INK).encode(x=alt.X("high:Q", scale=scale), text="most:N")
    title = alt.TitleParams("Agreement with the target's greedy choice", subtitle="both models before any quantisation")
    return alt.layer(rules, least, most, dots).properties(width=WIDTH, height=height, title=title)


def _speeds(rows: list[queries.Row]) -> theme.Layers:
    rows = [row | {"name": _label(row), "like": _like(row["method"])} for row in rows]
    names, methods = list(dict.fromkeys(row["name"] for row in rows)), {row["like"] for row in rows}
    datasets = sorted({row["dataset"] for row in rows})
    rows = [row | {"words": f"{grammar.number(row['speedup'])}×"} for row in rows]
    lowest, highest = (choose(row["speedup"] for row in rows) for choose in (min, max))
    domain = [min(0.8, lowest * 0.9) / 1.8, highest * 1.8]
    scale = alt.Scale(type="log", domain=domain, nice=False)
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if domain[0] <= tick <= domain[1]]
    x = alt.X("speedup:Q", scale=scale, axis=alt.Axis(title="speedup over autoregressive decoding (×)", values=ticks))
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=6))
    shapes = theme.shape_scale(datasets)
    one = alt.Chart(queries.data([{"speedup": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x=x)
    dots = alt.Chart(queries.data(rows)).mark_point(filled=True, size=75, opacity=1)
    dots = dots.encode(
        x=x,
        y=y,
        color=alt.Color("like:N", scale=theme.colour_scale(methods), legend=None),
        shape=alt.Shape("dataset:N", scale=shapes, legend=alt.Legend(title=None, orient="top")),
    )
    title = alt.TitleParams("Simulated speed by this machine's costs", subtitle="and by that agreement")
    return alt.layer(one, dots, *placement.numbers(rows, x, y, 9, value="speedup")).properties(
        width=WIDTH, height=alt.Step(STEP), title=title
    )


def _like(method: str) -> str:
    return ALIKE.get(method, method)


def _label(row: queries.Row) -> str:
    """Every chain has a line of its own; of the other methods the fastest setting has one, named in the caption."""
    if row["method"] == "chain":
        return f"Chain of {queries.knobs(row['setting'])['K']}"
    return "Best static tree" if row["method"] == "tree" else theme.display(_like(row["method"]))


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each data set: a chain, a tree or lookup; the oracle; agreement of the first choice."""
    agreement = queries.rows(tables, "drafter", kind="agreement", rank=1)
    simulated = queries.rows(tables, "drafter", kind="simulated")
    lists = []
    for dataset in sorted({row["dataset"] for row in simulated}):
        shares = grammar.joined([f"{r['agreement']:.0%} ({r['part']})" for r in agreement if r["dataset"] == dataset])
        own = [row for row in simulated if row["dataset"] == dataset]
        kinds = {kind: [row for row in own if row["method"] in kind] for kind in (("chain", "tree"), LOOKUPS)}
        drafted, found = (max(rows, key=lambda row: row["speedup"]) for rows in kinds.values())
        chain = max((row for row in own if row["method"] == "chain"), key=lambda row: row["speedup"])
        (oracle,) = (row for row in own if row["method"] == "oracle")
        text = f"On {dataset} the drafter is best used by {_words(drafted)}"
        text += f"; {_words(chain)} is the best chain" if drafted["method"] == "tree" else ", and no tree is faster"
        text += ", slower than autoregressive decoding" if drafted["speedup"] < 1 else ""
        ahead = "faster" if found["speedup"] > drafted["speedup"] else "no faster"
        lists.append(
            [
                f"{text}.",
                f"Lookup alone is {ahead}: {_words(found)}.",
                f"An oracle reaches {grammar.number(oracle['speedup'])}×.",
                f"The drafter's first choice is the target's at {shares} of positions.",
            ]
        )
    return captions.short(captions.in_turn(lists))


def _words(row: queries.Row) -> str:
    settings = grammar.knob_text(queries.knobs(row["setting"]))
    name = {"chain": "a chain", "tree": "a static tree"}.get(row["method"]) or theme.display(_like(row["method"]))
    return f"{name} ({settings}) with {grammar.number(row['speedup'])}×"
