"""Throughput and speedup of every method on every data set, with their intervals; the text's perplexity beside."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import captions, grammar, legends, queries, theme
from dynatree.tables import bootstrap

TABLES: tuple[str, ...] = ("summary", "runs", "perplexity")
SECTION = "Speed"

METRICS = {"throughput": "tokens/s", "speedup": "speedup over autoregressive decoding (×)"}
WIDTH, STEP = 250, 24


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """One row a data set; left throughput in tokens/s, right speedup. Raises UserError if there is no headline row."""
    found = {metric: queries.rows(tables, "summary", experiment="headline", metric=metric) for metric in METRICS}
    every = [row for rows in found.values() for row in rows]
    names = queries.labels((row["method"], row["settings"]) for row in every)
    datasets = sorted({row["dataset"] for row in every})
    perplexity = {row["dataset"]: row["perplexity"] for row in queries.rows(tables, "perplexity")}
    drawn = []
    for dataset in datasets:
        both = [
            _panel([r for r in rows if r["dataset"] == dataset], rows, metric, names, dataset == datasets[-1])
            for metric, rows in found.items()
        ]
        here = [row for row in every if row["dataset"] == dataset]
        title = f"{dataset} ({captions.prompts(here)})"
        if dataset in perplexity:
            title += f", perplexity of its text {grammar.number(perplexity[dataset])}"
        drawn.append(alt.hconcat(*both, title=title, spacing=24))
    return theme.finish(alt.vconcat(legends.boxes(legends.SIGNIFICANCE, 2 * WIDTH), *drawn))


def _label_start(row: queries.Row) -> float:
    """Right of the interval, and of the rule at 1 where the label would cross it."""
    end: float = row["value"] if row["high"] is None else row["high"]
    return max(end, 1.0) if row["metric"] == "speedup" else end


def _panel(
    here: list[queries.Row],
    everywhere: list[queries.Row],
    metric: str,
    names: dict[tuple[str, str], str],
    last: bool,
) -> theme.Layers:
    shown = [
        row
        | {
            "label": names[row["method"], row["settings"]],
            "end": _label_start(row),
            "words": grammar.number(row["value"]),
            "fill": theme.colour(row["method"])
            if row["significant"] or row["method"] == queries.AUTOREGRESSIVE
            else "white",
        }
        for row in here
        if row["value"] is not None
    ]
    highest = max(max(row["value"], row["high"] or 0.0) for row in everywhere if row["value"] is not None)
    scale = alt.Scale(domain=[0, highest * 1.2], nice=False)
    axis = alt.Axis(title=METRICS[metric] if last else None, tickCount=5)
    y = alt.Y(
        "label:N",
        title=None,
        sort=list(names.values()),
        scale=alt.Scale(domain=list(names.values())),
        axis=alt.Axis(ticks=False, domain=False, labels=metric == next(iter(METRICS)), labelPadding=6),
    )
    base = alt.Chart(queries.data(shown), width=WIDTH, height=alt.Step(STEP)).encode(y=y)
    colour = alt.Color("method:N", scale=theme.colour_scale(row["method"] for row in everywhere), legend=None)
    x = alt.X("value:Q", scale=scale, axis=axis)
    interval = base.mark_rule(strokeWidth=2, color=theme.INK).encode(
        x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"
    )
    words = base.mark_text(align="left", dx=7, color=theme.INK).encode(x=alt.X("end:Q", scale=scale), text="words:N")
    if metric == "throughput":
        return alt.layer(base.mark_bar(height=14).encode(x=x, color=colour), interval, words)
    one = alt.Chart(queries.data([{"x": 1}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x="x:Q")
    dots = base.mark_point(size=70, strokeWidth=2, opacity=1).encode(
        x=x, stroke=colour, fill=alt.Fill("fill:N", scale=None)
    )
    return alt.layer(one, interval.encode(color=colour), dots, words)


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each data set, by how much over autoregressive decoding and the next, who is slower."""
    ratios = [
        row
        for row in queries.rows(tables, "summary", experiment="headline", metric="speedup")
        if row["value"] is not None and row["method"] != queries.AUTOREGRESSIVE
    ]
    speeds = queries.rows(tables, "summary", experiment="headline", metric="throughput")
    runs = queries.rows(tables, "runs", experiment="headline")
    names = queries.labels((row["method"], row["settings"]) for row in speeds)
    parts = [
        "Throughput (left) and speedup over our own autoregressive decoding on the same prompts (right), both at the "
        "machine's usual pace: a request's seconds are divided by those of autoregressive steps timed meanwhile."
    ]
    for dataset in sorted({row["dataset"] for row in speeds}):
        here = [row for row in ratios if row["dataset"] == dataset]
        if here:
            parts.append(_sentences(dataset, here, runs, names))
    steps, spreads = ([run[name] for run in runs] for name in ("autoregressive_step_ms", "autoregressive_step_spread"))
    parts.append(
        f"An autoregressive step took {grammar.number(bootstrap.median(steps))} ms, from request to request "
        f"{grammar.number(min(steps))} to {grammar.number(max(steps))}; within a request its standard deviation was "
        f"{bootstrap.median(spreads):.1%} (median), at most {max(spreads):.0%}."
    )
    parts.append(
        f"Geometric means over prompts; {captions.intervals(ratios)}; filled dots: significantly different from 1."
    )
    return " ".join(parts)


def _sentences(
    dataset: str, ratios: list[queries.Row], runs: list[queries.Row], names: dict[tuple[str, str], str]
) -> str:
    ranked = sorted(ratios, key=lambda row: (-row["value"], row["method"], row["settings"]))
    best, *others = ranked
    text = f"On {dataset} ({captions.prompts(ratios)}) {captions.fastest(ranked, names)}."
    if others and best["value"] > 1:
        text += f" Against the next it has {captions.change(captions.paired(best, others[0], runs))}."
    slower = [row for row in ranked if row["value"] < 1]
    if slower:
        marked = [
            f"{names[row['method'], row['settings']]} "
            f"({grammar.number(row['value'])}×, {captions.judged(row['significant'])})"
            for row in slower
        ]
        text += f" Slower than autoregressive decoding: {grammar.joined(marked)}."
    return text
