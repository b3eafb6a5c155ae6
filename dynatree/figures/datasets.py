"""Throughput and speedup of every method on every data set, with their intervals; the text's perplexity beside."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import captions, grammar, legends, marks, queries, theme

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
    perplexity = queries.texts(tables)
    singles = marks.singles([row for row in found["speedup"] if row["method"] != queries.AUTOREGRESSIVE], tables)
    drawn = []
    for dataset in datasets:
        both = [
            _panel([r for r in rows if r["dataset"] == dataset], rows, singles, metric, names, dataset == datasets[-1])
            for metric, rows in found.items()
        ]
        here = [row for row in every if row["dataset"] == dataset]
        title = f"{dataset} ({captions.prompts(here)})"
        if dataset in perplexity:
            title += f", perplexity of its text {grammar.number(perplexity[dataset])}"
        drawn.append(alt.hconcat(*both, title=title, spacing=24))
    key = [*legends.significance(found["speedup"], singles), legends.BASELINE]
    return theme.finish(alt.vconcat(legends.boxes(key, 2 * WIDTH), *drawn))


def _label_start(row: queries.Row, singles: list[queries.Row]) -> float:
    """Right of the interval, of single prompts, and of the rule at 1 where the label would cross it."""
    end: float = row["value"] if row["high"] is None else row["high"]
    if row["metric"] != "speedup":
        return end
    own = [one["value"] for one in singles if (one["method"], one["settings"]) == (row["method"], row["settings"])]
    return max(end, 1.0, *own)


def _panel(
    here: list[queries.Row],
    everywhere: list[queries.Row],
    singles: list[queries.Row],
    metric: str,
    names: dict[tuple[str, str], str],
    last: bool,
) -> theme.Layers:
    dataset = here[0]["dataset"]
    own = [row | {"label": names[row["method"], row["settings"]]} for row in singles if row["dataset"] == dataset]
    shown = [
        marks.dot(
            row | {"significant": None if row["method"] == queries.AUTOREGRESSIVE else row["significant"]},
            theme.colour(row["method"]),
        )
        | {
            "label": names[row["method"], row["settings"]],
            "end": _label_start(row, own),
            "words": grammar.number(row["value"]),
        }
        for row in here
        if row["value"] is not None
    ]
    highest = max(max(row["value"], row["high"] or 0.0) for row in everywhere if row["value"] is not None)
    if metric == "speedup":
        highest = max([highest, *(row["value"] for row in singles)])
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
    few = [marks.small(own, x=x, y=y)] if own else []
    return alt.layer(one, interval.encode(color=colour), marks.dots(shown, x=x, y=y), *few, words)


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
    lists = [
        _sentences(dataset, here, runs, names)
        for dataset in sorted({row["dataset"] for row in speeds})
        if (here := [row for row in ratios if row["dataset"] == dataset])
    ]
    return captions.short(
        [*captions.in_turn(lists), "Speedup is over our autoregressive baseline on the same prompts."]
    )


def _sentences(
    dataset: str, ratios: list[queries.Row], runs: list[queries.Row], names: dict[tuple[str, str], str]
) -> list[str]:
    ranked = sorted(ratios, key=lambda row: (-row["value"], row["method"], row["settings"]))
    best, *others = ranked
    sentences = [f"On {dataset} {captions.fastest(ranked, names)}."]
    if others and best["value"] > 1:
        one, other = (names[row["method"], row["settings"]] for row in (best, others[0]))
        compared = captions.change(captions.paired(best, others[0], runs))
        sentences.append(f"On {dataset} {one} against {other}: {compared}.")
    slower = [names[row["method"], row["settings"]] for row in ranked if row["value"] < 1]
    return (
        [*sentences, f"Slower than autoregressive decoding on {dataset}: {grammar.joined(slower)}."]
        if slower
        else sentences
    )
