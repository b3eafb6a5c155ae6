"""Each output's perplexity under the target against that of autoregressive decoding's. Knows runs, not rounds."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, legends, queries, theme

TABLES: tuple[str, ...] = ("runs", "perplexity")
SECTION = "Acceptance"

WIDTH, STEP = 400, 24
TICKS = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000, 3000, 10000, 30000, 100000)
OTHER = "M-1,-1L1,1M-1,1L1,-1"  # a cross
NOT_COMPARED = "not compared"


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A line per method, a mark per output at its perplexity, and how many are the same, of those that are compared.

    Raises UserError without a pair.
    """
    found, _ = _found(tables)
    names = queries.labels((row["method"], row["settings"]) for row in found)
    baseline = theme.display(queries.AUTOREGRESSIVE)
    datasets = sorted({row["dataset"] for row in found})
    shapes = dict(zip(datasets, theme.shape_scale(datasets).range, strict=True))
    usual = {
        _prompt(row): row | {"label": baseline, "y": row["x"], "tone": theme.colour(queries.AUTOREGRESSIVE)}
        for row in found
    }
    shown = [row | {"shape": shapes[row["dataset"]], "inside": row["tone"]} for row in usual.values()]
    for row in found:
        own = {"label": names[row["method"], row["settings"]], "tone": theme.colour(row["method"])}
        own["inside"] = own["tone"] if _compared(row) else "white"
        other = _compared(row) and not row["identical"]
        shown.append(row | own | {"shape": OTHER if other else shapes[row["dataset"]]})
    counts = [
        {"label": label, "words": _identical([row for row in shown if row["label"] == label])}
        for label in names.values()
    ]
    ends = [row["y"] for row in shown]
    low, high = min(ends) / 1.1, max(ends) * 1.1
    axis: dict[str, Any] = {"values": [t for t in TICKS if low <= t <= high], "labelOverlap": "greedy", "format": "~g"}
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = alt.X("y:Q", scale=scale, axis=alt.Axis(title="perplexity of an output under the target", grid=False, **axis))
    order = [baseline, *names.values()]
    y = alt.Y("label:N", sort=order, title=None, scale=alt.Scale(domain=order))
    y = y.axis(ticks=False, domain=False, grid=True, labelPadding=6)
    rules = alt.Chart(queries.data([{"y": row["y"]} for row in usual.values()])).mark_rule(color=theme.FAINT)
    marks = alt.Chart(queries.data(shown), width=WIDTH, height=alt.Step(STEP)).mark_point(size=50, opacity=1)
    tone = {"fill": alt.Fill("inside:N", scale=None), "stroke": alt.Stroke("tone:N", scale=None)}
    marks = marks.encode(x=x, y=y, shape=alt.Shape("shape:N", scale=None), **tone)
    words = alt.Chart(queries.data(counts)).mark_text(align="left", color=theme.INK)
    words = words.encode(x=alt.value(WIDTH + 8), y=y, text="words:N")
    entries = [legends.Entry(name, theme.INK, theme.INK, shape, 60) for name, shape in shapes.items()]
    entries.append(legends.Entry("other tokens than autoregressive decoding", theme.INK, theme.INK, OTHER, 60))
    if not all(_compared(row) for row in found):
        entries.append(legends.Entry(NOT_COMPARED, "white", theme.INK, "circle", 60))
    return theme.finish(alt.vconcat(legends.boxes(entries, WIDTH + 100), alt.layer(rules.encode(x=x), marks, words)))


def _compared(row: queries.Row) -> bool:
    """Whether an output was compared token for token, which one by torch's own forward is not."""
    return row["flips"] is not None


def _identical(rows: Sequence[queries.Row]) -> str:
    """How many of a method's outputs that were compared are the same, in words."""
    compared = [bool(row["identical"]) for row in rows if _compared(row)]
    return f"{sum(compared)} of {len(compared)} identical" if compared else NOT_COMPARED


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
    texts = queries.texts(tables)
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
    compared = [row for row in found if _compared(row)]
    same, flips = sum(bool(row["identical"]) for row in compared), sum(row["flips"] for row in compared)
    ratio = {id(row): max(row["y"] / row["x"], row["x"] / row["y"]) for row in found}
    farthest = max(found, key=lambda row: ratio[id(row)])
    prompts = grammar.plural(len({_prompt(row)[:2] for row in found}), "prompt")
    parts = []
    if compared:
        parts.append(
            f"{same:,} of {grammar.plural(len(compared), 'output')} ({prompts}) {'equals' if same == 1 else 'equal'} "
            f"autoregressive decoding's token for token; {_flips(flips, sum(row['flips'] > 0 for row in compared))}."
        )
    if others := [names[key] for key in names if key not in {(row["method"], row["settings"]) for row in compared}]:
        parts.append(f"{NOT_COMPARED.capitalize()} token for token: {grammar.joined(others)}.")
    if ratio[id(farthest)] == 1:
        parts.append("All perplexities coincide.")
    else:
        who = f"{names[farthest['method'], farthest['settings']]} on {farthest['dataset']}"
        parts.append(f"The two differ most by {100 * (ratio[id(farthest)] - 1):.3g} % ({who}).")
        exact = [ratio[id(row)] for row in compared if not row["flipped"]]
        if exact:
            among = "all coincide" if max(exact) == 1 else f"they differ by at most {100 * (max(exact) - 1):.2g} %"
            parts.append(f"Of the {grammar.plural(len(exact), 'pair')} without a flip, {among}.")
    for name, value in texts.items():
        ends = [choose(row["x"] for row in found if row["dataset"] == name) for choose in (min, max)]
        given = " to ".join(dict.fromkeys(grammar.number(end) for end in ends))
        parts.append(f"The text of {name} has {grammar.number(value)}; outputs of autoregressive decoding {given}.")
    return captions.short(parts)


def _flips(tokens: int, outputs: int) -> str:
    if not tokens:
        return "every token is the target's argmax"
    verb = "is" if tokens == 1 else "are"
    counted = f"{grammar.plural(tokens, 'token')} of {grammar.plural(outputs, 'output')}"
    return f"{counted} {verb} not the target's argmax (flips)"
