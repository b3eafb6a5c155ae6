"""What each speculative method drafts, verifies and accepts: one panel a metric. Knows runs, not rounds."""

from collections.abc import Mapping
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, legends, queries, theme
from dynatree.tables import bootstrap

TABLES: tuple[str, ...] = ("runs",)
SECTION = "Acceptance"

# The main runs, and further chains and fixed trees beside them.
EXPERIMENTS = ("headline", "chains")
# What an experiment may vary besides.
CONDITIONS = ("prompt_tokens", "batch", "dtype")
STEP = 16


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
    "mean_path_length": Metric("Accepted path", "drafted tokens per round", "has the longest mean accepted path", 1),
    "nodes_per_round": Metric("Nodes verified", "nodes per round", "verifies the fewest nodes per round", -1),
    "target_forwards": Metric("Target forwards", "per request", "needs the fewest target forwards", -1),
}

Key = tuple[str, str, str]  # method, settings, place: data set, with prompts and tokens where these differ


class Mean(NamedTuple):
    """Over prompts, with its interval where there are documents enough for one."""

    value: float
    ends: tuple[float, float] | None


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """One panel a metric, one line a method, one shape a place. Raises UserError if no headline run drafted."""
    means = _means(_runs(tables))
    names = queries.labels((method, settings) for method, settings, _ in means["tokens_per_iteration"])
    places = sorted({place for values in means.values() for _, _, place in values})
    scale = theme.shape_scale(places)
    charts = [_panel(metric, means[metric], names, scale) for metric in METRICS if means[metric]]
    entries = [(name, shape, theme.INK) for name, shape in zip(places, scale.range, strict=True)]
    return theme.finish(alt.vconcat(legends.shapes(entries), alt.concat(*charts, columns=3, spacing=22)))


def _panel(metric: str, means: dict[Key, Mean], names: dict[tuple[str, str], str], shapes: alt.Scale) -> theme.Layers:
    title, unit, _, _, factor = METRICS[metric]
    places = {key: sorted(place for *other, place in means if (*other,) == key) for key in names}
    most = max(map(len, places.values()))
    shown = [
        {
            "method": method,
            "settings": settings,
            "label": names[method, settings],
            "dataset": place,
            "place": place,
            # Lines of one method, around its label.
            "offset": places[method, settings].index(place) - (len(places[method, settings]) - 1) / 2,
            "value": mean.value * factor,
            "low": mean.ends and mean.ends[0] * factor,
            "high": mean.ends and mean.ends[1] * factor,
            "end": (mean.ends[1] if mean.ends else mean.value) * factor,
            "words": grammar.number(mean.value * factor),
        }
        for (method, settings, place), mean in means.items()
    ]
    most_right = max(mean.ends[1] if mean.ends else mean.value for mean in means.values()) * factor
    scale = alt.Scale(domain=[0, (most_right or 1.0) * 1.28], nice=False)
    first = list(METRICS).index(metric) % 3 == 0
    base = alt.Chart(queries.data(shown), title=title, width=165, height=alt.Step(STEP * most + 4)).encode(
        y=alt.Y(
            "label:N",
            title=None,
            sort=list(names.values()),
            scale=alt.Scale(domain=list(names.values()), paddingInner=0.15),
            axis=alt.Axis(labels=first, ticks=False, domain=False, grid=False, labelPadding=6),
        ),
        yOffset=alt.YOffset("offset:Q", scale=alt.Scale(domain=[-most / 2, most / 2])),
        x=alt.X("value:Q", scale=scale, axis=alt.Axis(title=unit, tickCount=4)),
    )
    colour = alt.Color("method:N", scale=theme.colour_scale(m for m, _ in names), legend=None)
    stems = (
        base.mark_rule(strokeWidth=2, opacity=0.45)
        .encode(x=alt.X("zero:Q", scale=scale), x2="value:Q", color=colour)
        .transform_calculate(zero="0")
    )
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(
        color=colour, shape=alt.Shape("place:N", scale=shapes, legend=None)
    )
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour)
    words = base.mark_text(align="left", dx=7, color=theme.INK)
    return alt.layer(stems, interval, dots, words.encode(x=alt.X("end:Q", scale=scale), text="words:N"))


def _runs(tables: Mapping[str, pa.Table]) -> list[queries.Row]:
    """Runs of the methods that draft, with `place`. Raises UserError if no headline run drafted anything."""
    every = queries.rows(tables, "runs")
    runs = [run for experiment in EXPERIMENTS for run in every if run["experiment"] == experiment]
    drafting = {(run["method"], run["settings"]) for run in runs if run["drafted"]}
    if not any(run["drafted"] for run in runs if run["experiment"] == EXPERIMENTS[0]):
        raise UserError(f"no headline run drafted anything; methods: {', '.join({run['method'] for run in every})}")
    varied = [column for column in CONDITIONS if len({run[column] for run in runs}) > 1]

    def group(run: queries.Row) -> tuple[str, ...]:
        return tuple(run[name] for name in ("experiment", "dataset", *varied))

    sizes: dict[tuple[str, ...], tuple[frozenset[str], int]] = {}
    for key in {group(run) for run in runs}:
        here = [run for run in runs if group(run) == key]
        sizes[key] = frozenset(run["prompt_id"] for run in here), max(run["output_tokens"] for run in here)
    usual = {key[1]: size for key, size in sizes.items() if key[0] == EXPERIMENTS[0]}
    result = []
    for run in runs:
        place = run["dataset"]
        prompts, tokens = sizes[group(run)]
        # Counts of other prompts or of longer outputs are not compared with one another.
        if (prompts, tokens) != usual.get(place):
            place += f", {grammar.plural(len(prompts), 'prompt')} of {tokens} tokens"
        place += "".join(f", {column.replace('_', ' ')} {run[column]}" for column in varied)
        if (run["method"], run["settings"]) in drafting:
            result.append(run | {"place": place})
    return result


def _means(runs: list[queries.Row]) -> dict[str, dict[Key, Mean]]:
    """Mean over prompts (first over a prompt's repeats) per metric and (method, settings, place)."""
    document = {run["prompt_id"]: run["document_id"] for run in runs}
    values: dict[str, dict[Key, dict[str, list[float]]]] = {metric: {} for metric in METRICS}
    for run in runs:
        key = run["method"], run["settings"], run["place"]
        nodes = run["drafted"] / run["iterations"] if run["iterations"] and run["drafted"] is not None else None
        for metric in METRICS:
            value = nodes if metric == "nodes_per_round" else run[metric]
            if value is not None:
                values[metric].setdefault(key, {}).setdefault(run["prompt_id"], []).append(value)
    return {
        metric: {key: _mean(prompts, document) for key, prompts in groups.items()} for metric, groups in values.items()
    }


def _mean(prompts: dict[str, list[float]], document: dict[str, str]) -> Mean:
    values = [bootstrap.mean(repeats, geometric=False) for repeats in prompts.values()]
    ends = bootstrap.interval(values, [document[prompt] for prompt in prompts], geometric=False)
    return Mean(bootstrap.mean(values, geometric=False), ends)


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Per place who emits the most tokens per round, then who leads on the other metrics."""
    means = _means(_runs(tables))
    names = queries.labels((method, settings) for method, settings, _ in means["tokens_per_iteration"])
    lists = []
    for place in sorted({place for values in means.values() for _, _, place in values}):
        sentences = []
        for metric, (_, unit, phrase, better, factor) in METRICS.items():
            here = {key[:2]: mean.value * factor for key, mean in means[metric].items() if key[2] == place}
            if not here:
                continue
            ranked = sorted(here, key=lambda key: (-better * here[key], names[key]))
            sentence = f"On {place}, {names[ranked[0]]} {phrase} ({grammar.number(here[ranked[0]])}"
            sentence += f" {unit}" if unit.startswith("%") else ""
            if len(ranked) > 1:
                sentence += f"; next {names[ranked[1]]}, {grammar.number(here[ranked[1]])}"
            sentences.append(f"{sentence}).")
        lists.append(sentences)
    return captions.short(captions.in_turn(lists))
