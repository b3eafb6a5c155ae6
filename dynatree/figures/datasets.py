"""Throughput and speedup of every method on every data set, with their intervals. Knows no run, only the summary."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree import panels, theme

TABLES: tuple[str, ...] = ("summary",)
SECTION = "Speed"

BASELINE = "autoregressive"
METRICS = {"throughput": "tokens/s", "speedup": "speedup over our autoregressive loop (×)"}
WIDTH, STEP = 250, 24


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """One row a data set; left throughput in tokens/s, right speedup. Raises UserError if there is no headline row."""
    found = {metric: theme.rows(tables, "summary", experiment="headline", metric=metric) for metric in METRICS}
    every = [row for rows in found.values() for row in rows]
    names = theme.labels((row["method"], row["settings"]) for row in every)
    datasets = sorted({row["dataset"] for row in every})
    drawn = []
    for dataset in datasets:
        both = [
            _panel([r for r in rows if r["dataset"] == dataset], rows, metric, names, dataset == datasets[-1])
            for metric, rows in found.items()
        ]
        here = [row for row in every if row["dataset"] == dataset]
        prompts = theme.plural(max(row["prompts"] for row in here), "prompt")
        drawn.append(alt.hconcat(*both, title=f"{dataset} ({prompts})", spacing=24))
    return theme.finish(alt.vconcat(theme.key(panels.RESOLVED, 2 * WIDTH), *drawn))


def _label_start(row: theme.Row) -> float:
    """Right of the interval, and of the rule at 1 where the label would cross it."""
    end: float = row["value"] if row["high"] is None else row["high"]
    return max(end, 1.0) if row["metric"] == "speedup" else end


def _panel(
    here: list[theme.Row],
    everywhere: list[theme.Row],
    metric: str,
    names: dict[tuple[str, str], str],
    last: bool,
) -> theme.Layers:
    shown = [
        row
        | {
            "label": names[row["method"], row["settings"]],
            "end": _label_start(row),
            "words": theme.number(row["value"]),
            "fill": theme.colour(row["method"]) if row["resolved"] or row["method"] == BASELINE else "white",
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
    base = alt.Chart(theme.data(shown), width=WIDTH, height=alt.Step(STEP)).encode(y=y)
    colour = alt.Color("method:N", scale=theme.colour_scale(row["method"] for row in everywhere), legend=None)
    x = alt.X("value:Q", scale=scale, axis=axis)
    interval = base.mark_rule(strokeWidth=2, color=theme.INK).encode(
        x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"
    )
    words = base.mark_text(align="left", dx=7, color=theme.INK).encode(x=alt.X("end:Q", scale=scale), text="words:N")
    if metric == "throughput":
        return alt.layer(base.mark_bar(height=14).encode(x=x, color=colour), interval, words)
    one = alt.Chart(theme.data([{"x": 1}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(x="x:Q")
    dots = base.mark_point(size=70, strokeWidth=2, opacity=1).encode(
        x=x, stroke=colour, fill=alt.Fill("fill:N", scale=None)
    )
    return alt.layer(one, interval.encode(color=colour), dots, words)


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest on each data set, by how much, and whether that is resolved; at which values."""
    rows = theme.rows(tables, "summary", experiment="headline", metric="throughput")
    ratios = theme.rows(tables, "summary", experiment="headline", metric="speedup")
    names = theme.labels((row["method"], row["settings"]) for row in rows + ratios)
    parts = ["Throughput (left) and speedup over our autoregressive loop on the same prompts (right)."]
    for dataset in sorted({row["dataset"] for row in rows}):
        ranked = sorted(
            (r for r in rows if r["dataset"] == dataset and r["value"] is not None), key=lambda r: -r["value"]
        )
        here = {(r["method"], r["settings"]): r for r in ratios if r["dataset"] == dataset and r["value"] is not None}
        if ranked:
            parts.append(_sentence(dataset, ranked, here, names))
    given = any(row["low"] is not None for row in ratios)
    means = "Values are means over prompts (geometric); "
    means += "lines are 95 % bootstrap intervals over documents; " if given else "too few documents for intervals; "
    return " ".join([*parts, means + "filled dots: resolved against 1."])


def _sentence(
    dataset: str,
    ranked: list[theme.Row],
    ratios: dict[tuple[str, str], theme.Row],
    names: dict[tuple[str, str], str],
) -> str:
    best = ranked[0]
    key = best["method"], best["settings"]
    text = f"On {dataset}, {names[key]} is fastest with {theme.interval(best)} tokens/s"
    if best["method"] == BASELINE:
        text += ": no other method beats it"
    elif key in ratios:
        verdict = "resolved" if ratios[key]["resolved"] else "not resolved"
        prompts = theme.plural(ratios[key]["prompts"], "prompt")
        text += f", a speedup of {theme.interval(ratios[key])} ({verdict} with {prompts})"
    if len(ranked) > 1:
        second = ranked[1]
        ahead = theme.number(100 * (best["value"] / second["value"] - 1))
        text += f"; next is {names[second['method'], second['settings']]} with {theme.number(second['value'])} tokens/s"
        text += f" (the winner is {ahead} % faster)"
    slower = [names[k] for k in names if k in ratios and ratios[k]["value"] < 1 and k[0] != BASELINE]
    return text + (f"; slower than autoregressive: {theme.joined(slower)}." if slower else ".")
