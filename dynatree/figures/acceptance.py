"""What each speculative method drafts, verifies and accepts: one panel a metric. Knows runs, not rounds."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree import theme
from dynatree.errors import UserError

TABLES: tuple[str, ...] = ("runs",)
SECTION = "Acceptance"

STEP = 16
SHAPES = ("circle", "diamond", "square", "triangle-up", "cross")


class Metric(NamedTuple):
    """A panel: its title, its unit, what its largest and smallest mean call for in the caption, factor to the unit."""

    title: str
    unit: str
    phrase: str
    better: int
    factor: float = 1.0


METRICS = {
    "tokens_per_iteration": Metric("Tokens per round", "tokens", "emits the most tokens per round", 1),
    "acceptance_rate": Metric("Acceptance rate", "% of tree depth", "has the highest acceptance rate", 1, 100.0),
    "mean_path_length": Metric("Accepted path", "drafted tokens", "has the longest mean accepted path", 1),
    "nodes_per_round": Metric("Nodes verified", "nodes per round", "verifies the fewest nodes per round", -1),
    "target_forwards": Metric("Target forwards", "per request", "needs the fewest target forwards", -1),
}

Key = tuple[str, str, str]


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """One panel a metric, one line a method, one shape a data set. Raises UserError if no headline run drafted."""
    means = _means(tables)
    names = theme.labels((method, settings) for method, settings, _ in means["tokens_per_iteration"])
    datasets = sorted({dataset for values in means.values() for _, _, dataset in values})
    panels = [_panel(metric, means[metric], names, datasets) for metric in METRICS if means[metric]]
    shape = {dataset: SHAPES[place % len(SHAPES)] for place, dataset in enumerate(datasets)}
    legend = (
        alt.Chart(theme.data([{"dataset": dataset, "x": place * 110 + 8} for place, dataset in enumerate(datasets)]))
        .properties(width=110 * len(datasets), height=18)
        .encode(x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, 110 * len(datasets)], nice=False)))
    )
    scale = alt.Scale(domain=list(shape), range=list(shape.values()))
    marks = legend.mark_point(filled=True, size=60, opacity=1, color=theme.INK).encode(
        shape=alt.Shape("dataset:N", scale=scale, legend=None)
    )
    return theme.finish(
        alt.vconcat(
            alt.layer(marks, legend.mark_text(align="left", dx=9).encode(text="dataset:N")),
            alt.concat(*panels, columns=3, spacing=22),
        )
    )


def _panel(
    metric: str, means: dict[Key, float], names: dict[tuple[str, str], str], datasets: list[str]
) -> theme.Layers:
    title, unit, _, _, factor = METRICS[metric]
    shown = [
        {
            "method": method,
            "label": names[method, settings],
            "dataset": dataset,
            "value": value * factor,
            "words": theme.number(value * factor),
        }
        for (method, settings, dataset), value in means.items()
    ]
    scale = alt.Scale(domain=[0, (max(value * factor for value in means.values()) or 1.0) * 1.28], nice=False)
    first = list(METRICS).index(metric) % 3 == 0
    base = alt.Chart(theme.data(shown), title=title, width=165, height=alt.Step(STEP)).encode(
        y=alt.Y(
            "label:N",
            title=None,
            sort=list(names.values()),
            scale=alt.Scale(domain=list(names.values()), paddingInner=0.15),
            axis=alt.Axis(labels=first, ticks=False, domain=False, grid=False, labelPadding=6),
        ),
        yOffset=alt.YOffset("dataset:N", sort=datasets, scale=alt.Scale(domain=datasets)),
        x=alt.X("value:Q", scale=scale, axis=alt.Axis(title=unit, tickCount=4)),
    )
    colour = alt.Color("method:N", scale=theme.colour_scale(m for m, _ in names), legend=None)
    shapes = alt.Scale(domain=datasets, range=[SHAPES[place % len(SHAPES)] for place in range(len(datasets))])
    stems = (
        base.mark_rule(strokeWidth=2, opacity=0.45)
        .encode(x=alt.X("zero:Q", scale=scale), x2="value:Q", color=colour)
        .transform_calculate(zero="0")
    )
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(
        color=colour, shape=alt.Shape("dataset:N", scale=shapes, legend=None)
    )
    return alt.layer(stems, dots, base.mark_text(align="left", dx=7, color=theme.INK).encode(text="words:N"))


def _means(tables: Mapping[str, pa.Table]) -> dict[str, dict[Key, float]]:
    """Mean over prompts (first over a prompt's repeats) per metric and (method, settings, data set)."""
    runs = theme.rows(tables, "runs", experiment="headline")
    drafting = {(run["method"], run["settings"]) for run in runs if run["drafted"]}
    if not drafting:
        raise UserError(f"no headline run drafted anything; methods: {', '.join({run['method'] for run in runs})}")
    values: dict[str, dict[Key, dict[str, list[float]]]] = {metric: {} for metric in METRICS}
    for run in runs:
        if (run["method"], run["settings"]) not in drafting:
            continue
        key = run["method"], run["settings"], run["dataset"]
        nodes = run["drafted"] / run["iterations"] if run["iterations"] and run["drafted"] is not None else None
        for metric in METRICS:
            value = nodes if metric == "nodes_per_round" else run[metric]
            if value is not None:
                values[metric].setdefault(key, {}).setdefault(run["prompt_id"], []).append(value)
    return {
        metric: {key: _mean([_mean(repeats) for repeats in prompts.values()]) for key, prompts in groups.items()}
        for metric, groups in values.items()
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Per data set, who leads on each metric and how far the next one is."""
    means = _means(tables)
    names = theme.labels((method, settings) for method, settings, _ in means["tokens_per_iteration"])
    parts = ["What the speculative methods draft and what the target accepts."]
    for dataset in sorted({dataset for values in means.values() for _, _, dataset in values}):
        clauses = []
        for metric, (_, unit, phrase, better, factor) in METRICS.items():
            here = {key[:2]: value * factor for key, value in means[metric].items() if key[2] == dataset}
            if not here:
                continue
            ranked = sorted(here, key=lambda key: (-better * here[key], names[key]))
            best = ranked[0]
            clause = f"{names[best]} {phrase} ({theme.number(here[best])} {unit}"
            if len(ranked) > 1:
                clause += f"; next {names[ranked[1]]}, {theme.number(here[ranked[1]])}"
            clauses.append(clause + ")")
        parts.append(f"On {dataset}, {theme.joined(clauses)}.")
    prompts = {(run["dataset"], run["prompt_id"]) for run in theme.rows(tables, "runs", experiment="headline")}
    counts = Counter(dataset for dataset, _ in prompts)
    over = theme.joined([f"{theme.plural(counts[name], 'prompt')} of {name}" for name in sorted(counts)])
    return " ".join([*parts, f"Means over {over}; tokens per round include the target's own."])
