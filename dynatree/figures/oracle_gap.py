"""How much of an oracle's speed each method has; an oracle drafts the true continuation for nothing."""

from collections.abc import Mapping
from itertools import pairwise

import altair as alt
import pyarrow as pa

from dynatree import theme
from dynatree.errors import UserError

TABLES: tuple[str, ...] = ("runs", "costs")
SECTION = "Speed"

WIDTH, STEP = 420, 26
MOST = 63  # tokens that the oracle drafts in a round
SHAPES = ("circle", "diamond", "square", "triangle-up", "cross")


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row a method, a dot a data set: share of the oracle's speed. Raises UserError without runs or costs."""
    shares = _shares(tables)
    methods = theme.ordered(method for method, _ in shares)
    datasets = sorted({dataset for _, dataset in shares})
    rows: list[theme.Row] = [
        {"name": theme.display(m), "method": m, "dataset": d, "share": s, "words": f"{s:.0%}"}
        for (m, d), s in shares.items()
    ]
    highest = {method: max(s for (m, _), s in shares.items() if m == method) for method in methods}
    labels = [row for row in rows if row["share"] == highest[row["method"]]]
    names = [theme.display(method) for method in methods]
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=6))
    scale = alt.Scale(domain=[0, max(highest.values()) * 1.15], nice=False)
    x = alt.X("share:Q", scale=scale, axis=alt.Axis(title="share of the oracle's speed", format="%", tickCount=6))
    shapes = alt.Scale(domain=datasets, range=[SHAPES[i % len(SHAPES)] for i in range(len(datasets))])
    base = alt.Chart(theme.data(rows), width=WIDTH, height=alt.Step(STEP)).encode(x=x, y=y)
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(
        color=alt.Color("method:N", scale=theme.colour_scale(methods), legend=None),
        shape=alt.Shape("dataset:N", scale=shapes, legend=alt.Legend(title=None, orient="top")),
    )
    words = (
        alt.Chart(theme.data(labels)).mark_text(align="left", dx=8, color=theme.INK).encode(x=x, y=y, text="words:N")
    )
    return theme.finish(alt.layer(dots, words))


def _shares(tables: Mapping[str, pa.Table]) -> dict[tuple[str, str], float]:
    """Mean share of the oracle's speed after the first commit, by method and data set."""
    runs = theme.rows(tables, "runs", experiment="headline")
    costs = [row for row in theme.rows(tables, "costs", batch=1) if row["part"] == "verify"]
    if not costs:
        raise UserError("no verification costs; run the calibration first")
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        later = run["output_tokens"] - 1
        if run["tpot_ms"] and later > 0:
            context = run["prompt_tokens"] + run["output_tokens"] // 2
            found.setdefault((run["method"], run["dataset"]), []).append(
                _oracle_ms(costs, context, later) / (run["tpot_ms"] * later)
            )
    if not found:
        raise UserError(f"no headline run emitted more than one token; runs: {len(runs)}")
    return {key: sum(values) / len(values) for key, values in found.items()}


def _oracle_ms(costs: list[theme.Row], context: int, tokens: int) -> float:
    """Milliseconds of verifying `tokens` right tokens, at most MOST drafted and one more a round."""
    near = min({row["context"] for row in costs}, key=lambda measured: abs(measured - context))
    curve = sorted((row["tokens"], row["ms"]) for row in costs if row["context"] == near)

    def ms(count: int) -> float:
        for (low, before), (high, after) in pairwise(curve):
            if count <= high:
                return float(before + (after - before) * (count - low) / (high - low))
        return float(curve[-1][1])

    # The best of all round lengths: the longest need not be the fastest.
    return min(
        (tokens // length) * ms(length) + (ms(tokens % length) if tokens % length else 0.0)
        for length in range(1, MOST + 2)
    )


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who comes nearest to the oracle on each data set."""
    shares = _shares(tables)
    parts = [
        f"An oracle drafts the target's own continuation for nothing, at most {MOST} tokens a round, and pays the "
        "measured cost of verifying them; prefill left out."
    ]
    for dataset in sorted({dataset for _, dataset in shares}):
        ranked = sorted((item for item in shares.items() if item[0][1] == dataset), key=lambda item: -item[1])
        (best, _), share = ranked[0]
        text = f"On {dataset} {theme.display(best)} comes nearest with {share:.0%} of its speed"
        if len(ranked) > 1:
            text += f"; next {theme.display(ranked[1][0][0])}, {ranked[1][1]:.0%}"
        parts.append(text + ".")
    return " ".join(parts)
