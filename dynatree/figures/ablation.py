"""What each part of the method is worth: speedup of the full method and of variants without a part.

Two blocks: the threshold policy with the model drafter, and the default. The difference to the full variant is a mean
of ratios prompt by prompt, so that prompts that are fast with every variant do not blur it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, legends, marks, queries, theme

TABLES: tuple[str, ...] = ("summary", "runs")
SECTION = "Settings"

EXPERIMENT = "ablation"
BLOCKS = {"dynatree_threshold": "Threshold policy, drafter model", "dynatree": "Cost-aware default"}
REMOVED = "without_"  # begins the name of a method that is the default less a part
STATIC = "optimal"  # the baseline of both blocks
OFF = ("None", "False")
KNOBS = {"tau": "pruning", "N": "node budget"}
NOTES = {"without_draft_vocabulary": "uses costs and probabilities that were measured with it"}
WIDTH, STEP = 210, 24
VALUES, CHANGES = WIDTH + 8, WIDTH + 46  # pixels from the left: the numbers beside the panel


class Block(NamedTuple):
    """A full method, its variants and what it is compared with, on one data set; rows of `summary` and more."""

    place: str
    title: str
    full: queries.Row
    rows: list[queries.Row]


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A panel per block and data set, a row per variant. Raises UserError where no full method was run."""
    blocks = _blocks(tables)
    every = [row for block in blocks for row in block.rows]
    singles = marks.singles(every, tables)
    ends = [row[name] for row in [*every, *singles] for name in ("value", "low", "high") if row[name] is not None]
    low, high = min(*ends, 1.0), max(*ends, 1.0)
    margin = (high - low) * 0.06 or 0.1
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False, zero=False)
    charts = [_panel(block, marks.singles(block.rows, tables), scale, block is blocks[-1]) for block in blocks]
    key = legends.boxes(legends.significance(every, singles), WIDTH + 220)
    return theme.finish(alt.vconcat(key, *charts))


def _panel(block: Block, singles: list[queries.Row], scale: alt.Scale, last: bool) -> theme.Layers:
    tone = theme.colour(block.full["method"])
    shown = []
    for row in block.rows:
        own = tone if row["method"].startswith((block.full["method"], REMOVED)) else theme.colour(row["method"])
        changed = {
            "change": "" if row is block.full else "same rounds" if row["alike"] else captions.percent(row["ratio"])
        }
        changed |= {"ink": theme.INK if row["differs"] else theme.QUIET}
        shown.append(marks.dot(row, own) | changed | {"words": f"{grammar.number(row['value'])}×"})
    names = [row["label"] for row in shown]
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title="speedup (×)" if last else None, tickCount=5))
    y = alt.Y(
        "label:N",
        sort=names,
        title=None,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(ticks=False, domain=False, grid=True, labelPadding=6),
    )
    one = alt.Chart(queries.data([{"value": 1.0}])).mark_rule(color=theme.QUIET, strokeDash=[4, 3])
    full = alt.Chart(queries.data([{"value": block.full["value"]}])).mark_rule(color=tone, strokeWidth=2, opacity=0.35)
    layers: list[alt.Chart] = [one.encode(x=x), full.encode(x=x)]
    ranged = [row | {"value": row["low"]} for row in shown if row["low"] is not None]
    if ranged:
        rule = alt.Chart(queries.data(ranged)).mark_rule(strokeWidth=2)
        layers.append(rule.encode(x=x, x2="high:Q", y=y, color=alt.Color("tone:N", scale=None)))
    base = alt.Chart(queries.data(shown)).encode(y=y)
    layers.append(marks.dots(shown, x=x, y=y))
    if singles:
        tones = {row["label"]: row["tone"] for row in shown}
        layers.append(marks.small([row | {"tone": tones[row["label"]]} for row in singles], x=x, y=y))
    words = base.mark_text(align="left", color=theme.INK)
    layers.append(words.encode(x=alt.value(VALUES), text="words:N"))
    changes = base.mark_text(align="left").encode(color=alt.Color("ink:N", scale=None), text="change:N")
    layers.append(changes.encode(x=alt.value(CHANGES)))
    return alt.layer(*layers).properties(width=WIDTH, height=alt.Step(STEP), title=block.title)


def _blocks(tables: Mapping[str, pa.Table]) -> list[Block]:
    found = queries.rows(tables, "summary", experiment=EXPERIMENT, metric="speedup")
    runs = queries.rows(tables, "runs", experiment=EXPERIMENT)
    rows = [row for row in found if row["method"] != queries.AUTOREGRESSIVE and row["value"] is not None]
    blocks = []
    for place, here in queries.places(rows, "prompt_tokens", "batch", "dtype"):
        for method, title in BLOCKS.items():
            variants = [row for row in here if row["method"] == method]
            if not variants:
                continue
            full = _full(variants)
            chosen = [full, *(row for row in variants if row is not full), *_others(method, here)]
            paired = [row | {"label": _label(row, full)} | captions.paired(row, full, runs) for row in chosen]
            blocks.append(Block(place, f"{title}: {place} ({captions.prompts(paired)})", paired[0], paired))
    if not blocks:
        raise UserError(f"{EXPERIMENT}: none of {', '.join(BLOCKS)} was run; found {', '.join(_methods(found))}")
    return blocks


def _methods(rows: Sequence[queries.Row]) -> list[str]:
    return theme.ordered(row["method"] for row in rows)


def _others(method: str, rows: Sequence[queries.Row]) -> list[queries.Row]:
    """The other methods of a block, the static tree last: by name the default's variants, the rest the threshold's."""
    default = method == list(BLOCKS)[-1]
    own = [
        row
        for row in rows
        if row["method"] not in BLOCKS and row["method"] != STATIC and row["method"].startswith(REMOVED) == default
    ]
    return own + [row for row in rows if row["method"] == STATIC]


def _full(variants: Sequence[queries.Row]) -> queries.Row:
    """The settings with the fewest parts switched off, then those that share most with the others."""
    often = Counter(item for row in variants for item in queries.knobs(row["settings"]).items())

    def rank(row: queries.Row) -> tuple[int, int]:
        knobs = queries.knobs(row["settings"])
        return sum(value in OFF for value in knobs.values()), -sum(often[item] for item in knobs.items())

    return min(variants, key=rank)


def _label(row: queries.Row, full: queries.Row) -> str:
    """`DynaTree, threshold`; of other settings what differs: `Without pruning (tau none)`, `D 5`."""
    if row is full or row["method"] != full["method"]:
        return theme.display(row["method"])
    usual = queries.knobs(full["settings"])
    changed = {name: value for name, value in queries.knobs(row["settings"]).items() if usual.get(name) != value}
    text = grammar.joined([_changed(name, value) for name, value in changed.items()])
    return text[:1].upper() + text[1:] or row["settings"]


def _changed(name: str, value: str) -> str:
    text = grammar.knob_text({name: value})
    return f"without {KNOBS.get(name, name)} ({text})" if value in OFF else text


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Per block: the full method's speedup, its slowest variant, the fastest of all, and what did the same."""
    blocks = _blocks(tables)
    lists = []
    for block in blocks[::-1]:
        full, changes = block.full, [row for row in block.rows if row is not block.full]
        text = f"On {block.place} {full['label']} reaches {grammar.interval(full, '×')} ({captions.verdict(full)})"
        told = [row for row in changes if not row["alike"]]
        if told:
            worst = min(told, key=lambda row: row["ratio"])
            text += f"; slowest variant: {worst['label']}{_note(worst)}, {captions.change(worst)}"
        sentences = [f"{text}."]
        if changes:
            # What does the same as the full method is no variant: its difference is what chance does to a ratio.
            best = max((full, *told), key=lambda row: row["value"])
            name = best["label"] if best["value"] > 1 else "autoregressive decoding"
            sentences.append(f"Fastest of {full['label']} and its variants: {name}.")
        sentences += [
            f"{row['label']} takes the very same rounds, so its {captions.percent(row['ratio'])} is chance."
            for row in changes
            if row["alike"]
        ]
        lists.append(sentences)
    return captions.short(captions.in_turn(lists))


def _note(row: queries.Row) -> str:
    return f" ({NOTES[row['method']]})" if row["method"] in NOTES else ""
