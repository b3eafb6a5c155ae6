"""How much of an oracle's speed each method has; an oracle drafts the true continuation at no cost."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, legends, placement, queries, theme
from dynatree.tables import bootstrap

TABLES: tuple[str, ...] = ("runs", "costs")
SECTION = "Speed"

WIDTH, STEP = 420, 26
MOST = 63  # tokens that the oracle drafts in a round


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row per method, a dot per data set: share of the oracle's speed. Raises UserError without runs or costs."""
    found = _shares(tables)
    methods = theme.ordered(row["method"] for row in found)
    datasets = sorted({row["dataset"] for row in found})
    names = [theme.display(method) for method in methods]
    rows = [row | {"name": theme.display(row["method"]), "words": f"{row['value']:.0%}"} for row in found]
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=6))
    highest = max(row["high"] or row["value"] for row in rows)
    scale = alt.Scale(domain=[0, highest * 1.15], nice=False)
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title="share of the oracle's speed", format="%", tickCount=6))
    shapes = theme.shape_scale(datasets)
    colour = alt.Color("method:N", scale=theme.colour_scale(methods), legend=None)
    base = alt.Chart(queries.data(rows), width=WIDTH, height=alt.Step(STEP)).encode(x=x, y=y)
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(
        color=colour, shape=alt.Shape("dataset:N", scale=shapes, legend=None)
    )
    layers: list[Any] = []
    if ranged := [row for row in rows if row["low"] is not None]:
        rule = alt.Chart(queries.data(ranged)).mark_rule(strokeWidth=1.5)
        layers.append(rule.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=colour))
    layers.append(dots)
    layers += placement.numbers(rows, x, y, 8)
    key = legends.shapes([(name, shape, theme.INK) for name, shape in zip(datasets, shapes.range, strict=True)])
    explained = [f"The oracle drafts the target's own next {MOST} tokens at no cost, and pays this machine's time for"]
    explained.append("the target forwards that verify them.")
    title = alt.TitleParams("Share of an oracle's speed after the first token", subtitle=explained, offset=10)
    return theme.finish(alt.vconcat(key, alt.layer(*layers), title=title))


def _shares(tables: Mapping[str, pa.Table]) -> list[queries.Row]:
    """Share of the oracle's speed after the first commit, by method and data set: geometric means, intervals.

    Both in autoregressive steps, a run's in those timed meanwhile, the oracle's in the table's: the run and the
    calibration saw the machine at different minutes.
    """
    runs = queries.rows(tables, "runs", experiment="headline")
    own = {run["dtype"] for run in runs}
    costs = [r for r in queries.rows(tables, "costs", batch=1) if r["part"] == "verify" and r["dtype"] in own]
    if not costs:
        raise UserError("no verification costs; run the calibration first")
    step = _curve(costs, min(row["context"] for row in costs))[0][1]
    found: dict[tuple[str, str], list[queries.Row]] = {}
    for run in runs:
        later = run["output_tokens"] - 1
        if run["tpot_ms"] and later > 0:
            context = run["prompt_tokens"] + run["output_tokens"] // 2
            own = run["tpot_ms"] / (run["pace"] * run["autoregressive_step_ms"]) * later
            share = _oracle_ms(_curve(costs, context), later) / step / own
            found.setdefault((run["method"], run["dataset"]), []).append(run | {"share": share})
    if not found:
        raise UserError(f"no headline run emitted more than one token; runs: {len(runs)}")
    rows = []
    for (method, dataset), own_runs in found.items():
        shares, documents = ([run[name] for run in own_runs] for name in ("share", "document_id"))
        ends = bootstrap.interval(shares, documents, geometric=True)
        rows.append(
            {
                "method": method,
                "dataset": dataset,
                "prompts": len({run["prompt_id"] for run in own_runs}),
                "output_tokens": max(run["output_tokens"] for run in own_runs),
                "value": bootstrap.mean(shares, geometric=True),
                "low": ends[0] if ends else None,
                "high": ends[1] if ends else None,
            }
        )
    return rows


def _curve(costs: list[queries.Row], context: int) -> list[tuple[int, float]]:
    """(Tokens, ms) of a forward, ascending, at the measured context nearest to `context`."""
    near = min({row["context"] for row in costs}, key=lambda measured: abs(measured - context))
    return sorted((row["tokens"], row["ms"]) for row in costs if row["context"] == near)


def _oracle_ms(curve: list[tuple[int, float]], tokens: int) -> float:
    """Milliseconds of verifying `tokens` right tokens, at most MOST drafted and one more a round."""

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
    found = _shares(tables)
    parts = []
    for dataset in sorted({row["dataset"] for row in found}):
        here = [row for row in found if row["dataset"] == dataset]
        best, *others = sorted(here, key=lambda row: -row["value"])
        ends = f" [{best['low']:.0%}, {best['high']:.0%}]" if best["low"] is not None else ""
        text = f"On {dataset} ({captions.prompts(here)}) {theme.display(best['method'])} comes nearest with "
        text += f"{best['value']:.0%}{ends} of the oracle's speed"
        if others:
            text += f"; next {theme.display(others[0]['method'])}, {others[0]['value']:.0%}"
        parts.append(text + ".")
    return captions.short([*parts, "Prefill left out."])
