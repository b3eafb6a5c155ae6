"""Each output's perplexity under the target against that of autoregressive decoding's. Knows runs, not rounds."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import grammar, legends, queries, theme

TABLES: tuple[str, ...] = ("runs", "perplexity")
SECTION = "Acceptance"

SIDE, COLUMNS = 150, 4
TICKS = (1, 1.2, 1.4, 1.6, 1.8, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000, 3000, 10000, 30000, 100000)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A panel per method, a mark per output, on the diagonal where it says the same. UserError without a pair."""
    found, texts = _found(tables)
    names = queries.labels((row["method"], row["settings"]) for row in found)
    datasets = sorted({row["dataset"] for row in found})
    ends = [value for row in found for value in (row["x"], row["y"])]
    scale = alt.Scale(type="log", domain=[min(ends) / 1.15, max(ends) * 1.15], nice=False)
    shapes = theme.shape_scale(datasets)
    charts = [
        _panel([row for row in found if (row["method"], row["settings"]) == key], name, scale, shapes, place)
        for place, (key, name) in enumerate(names.items())
    ]
    entries = [(f"{name} (text: {grammar.number(texts[name])})", shape, theme.INK) for name, shape in zip(
        datasets, shapes.range, strict=True)]  # fmt: skip
    entries += [("filled: same tokens", "circle", theme.INK), ("hollow: other tokens", "circle", "white")]
    return theme.finish(alt.vconcat(legends.shapes(entries), alt.concat(*charts, columns=COLUMNS, spacing=18)))


def _panel(
    rows: Sequence[queries.Row],
    name: str,
    scale: alt.Scale,
    shapes: alt.Scale,
    place: int,
) -> theme.Layers:
    tone = theme.colour(rows[0]["method"])
    low, high = scale.domain
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis: dict[str, Any] = {"values": ticks, "labelOverlap": "greedy", "format": "~g"}
    x = alt.X("x:Q", scale=scale, axis=alt.Axis(title="perplexity, autoregressive", **axis))
    y = alt.Y("y:Q", scale=scale, axis=alt.Axis(title=None if place % COLUMNS else "perplexity, this method", **axis))
    shape = alt.Shape("dataset:N", scale=shapes, legend=None)
    line = alt.Chart(queries.data([{"x": low, "y": low}, {"x": high, "y": high}]), width=SIDE, height=SIDE, title=name)
    marks = alt.Chart(queries.data([row | {"fill": tone if row["identical"] else "white"} for row in rows]))
    return alt.layer(
        line.mark_line(color=theme.QUIET, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y),
        marks.mark_point(size=50, opacity=0.9, stroke=tone, strokeWidth=1.5).encode(
            x=x, y=y, shape=shape, fill=alt.Fill("fill:N", scale=None)
        ),
    )


def _found(tables: Mapping[str, pa.Table]) -> tuple[list[queries.Row], dict[str, float]]:
    """(A row per output: `x` autoregressive decoding's perplexity, `y` its own, `flipped` if either flips; texts')."""
    runs = [row for row in queries.rows(tables, "runs", experiment="headline") if row["perplexity"] is not None]
    usual = {_prompt(row): row for row in runs if row["method"] == queries.AUTOREGRESSIVE}
    found = [
        row | {"x": other["perplexity"], "y": row["perplexity"], "flipped": bool(row["flips"] or other["flips"])}
        for row in runs
        if row["method"] != queries.AUTOREGRESSIVE and (other := usual.get(_prompt(row)))
    ]
    if not found:
        raise UserError(
            f"perplexity: no headline run of {queries.AUTOREGRESSIVE} and another method on the same prompt"
        )
    texts = {row["dataset"]: row["perplexity"] for row in queries.rows(tables, "perplexity")}
    datasets = {row["dataset"] for row in found}
    if missing := sorted(datasets - set(texts)):
        raise UserError(f"perplexity: none measured for the text of {', '.join(missing)}")
    return found, {name: texts[name] for name in sorted(datasets)}


def _prompt(row: queries.Row) -> tuple[str, str, int]:
    return row["dataset"], row["prompt_id"], row["repeat"]


def caption(tables: Mapping[str, pa.Table]) -> str:
    """How many outputs are autoregressive decoding's, how many flip, the largest ratio, and the texts' perplexities."""
    found, texts = _found(tables)
    names = queries.labels((row["method"], row["settings"]) for row in found)
    same = sum(bool(row["identical"]) for row in found)
    flips = sum(row["flips"] for row in found)
    ratio = {id(row): max(row["y"] / row["x"], row["x"] / row["y"]) for row in found}
    farthest = max(found, key=lambda row: ratio[id(row)])
    prompts = grammar.plural(len({_prompt(row)[:2] for row in found}), "prompt")
    parts = [
        "Perplexity of each output under the target, against that of autoregressive decoding's output for the same "
        "prompt.",
        f"{same:,} of {grammar.plural(len(found), 'output')} ({prompts}) {'equals' if same == 1 else 'equal'} "
        f"autoregressive decoding's token for token; {_flips(flips, sum(row['flips'] > 0 for row in found))}.",
    ]
    if ratio[id(farthest)] == 1:
        parts.append("All perplexities coincide.")
    else:
        who = f"{names[farthest['method'], farthest['settings']]} on {farthest['dataset']}"
        parts.append(f"The two differ most by {100 * (ratio[id(farthest)] - 1):.3g} % ({who}).")
        exact = [ratio[id(row)] for row in found if not row["flipped"]]
        if exact:
            among = "all coincide" if max(exact) == 1 else f"they differ by at most {100 * (max(exact) - 1):.2g} %"
            parts.append(f"Of the {grammar.plural(len(exact), 'pair')} without a flip, {among}.")
    described = {row["dataset"]: row for row in queries.rows(tables, "perplexity")}
    for name, value in texts.items():
        row = described[name]
        ends = [choose(row["x"] for row in found if row["dataset"] == name) for choose in (min, max)]
        given = " to ".join(dict.fromkeys(grammar.number(end) for end in ends))
        parts.append(
            f"The text of {name} has {grammar.number(value)} ({row['tokens']:,} tokens, window {row['window']}, stride "
            f"{row['stride']}); autoregressive decoding's outputs have {given}."
        )
    return " ".join(parts)


def _flips(tokens: int, outputs: int) -> str:
    if not tokens:
        return "every token is the target's argmax"
    verb = "is" if tokens == 1 else "are"
    counted = f"{grammar.plural(tokens, 'token')} of {grammar.plural(outputs, 'output')}"
    return f"{counted} {verb} not the target's argmax (flips)"
