"""Where the time of a token goes: model forwards, and what drafting, selecting, verifying and keeping take besides;
from instrumented passes. Knows no run.
"""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, legends, queries, theme

TABLES: tuple[str, ...] = ("phases",)
SECTION = "Costs"
SHOWS = "timeline"

WIDTH, STEP = 460, 34
# Forwards, by the phase that they are in, then what each phase takes besides. Prefill comes once a request and is left
# out; `other` is what lies between the phases.
FORWARDS = {"verify": "target forward", "draft": "draft forwards"}
BESIDES = {
    "draft": "drafting besides",
    "select": "selecting",
    "verify": "verifying besides",
    "cache": "keeping the path",
    "other": "other",
}


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A bar per method: milliseconds per token after the prefill, by part. Raises UserError without any pass."""
    spent = _spent(tables)
    names = [theme.display(method) for method in spent]
    tones = {label: theme.PHASES[phase] for phase, label in FORWARDS.items()}
    tones |= {label: theme.BESIDES[phase] for phase, label in BESIDES.items()}
    rows: list[queries.Row] = []
    for method, parts in spent.items():
        start = 0.0
        for part in tones:
            end = start + parts[part]
            rows.append({"name": theme.display(method), "part": part, "x": start, "x2": end})
            start = end
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=6))
    scale = alt.Scale(domain=list(tones), range=list(tones.values()))
    largest = max(row["x2"] for row in rows)
    x_scale = alt.Scale(domain=[0, largest * 1.5], nice=False)
    bars = (
        alt.Chart(queries.data(rows), width=WIDTH, height=alt.Step(STEP))
        .mark_bar(height=18)
        .encode(
            y=y,
            x=alt.X("x:Q", scale=x_scale, axis=alt.Axis(title="ms per token", tickCount=6)),
            x2="x2:Q",
            color=alt.Color("part:N", scale=scale, legend=None),
        )
    )
    totals = []
    for method, parts in spent.items():
        text = f"{grammar.number(sum(parts.values()))}, {_outside(parts):.1%} outside forwards"
        totals.append({"name": theme.display(method), "x": sum(parts.values()), "words": text})
    words = alt.Chart(queries.data(totals)).mark_text(align="left", dx=5, color=theme.INK)
    words = words.encode(y=y, x=alt.X("x:Q", scale=x_scale), text="words:N")
    key = legends.boxes([(label, colour, colour) for label, colour in tones.items()], WIDTH)
    return theme.finish(alt.vconcat(key, bars + words))


def _spent(tables: Mapping[str, pa.Table]) -> dict[str, dict[str, float]]:
    """Milliseconds per token after the prefill, by method and part."""
    rows = [row for row in queries.rows(tables, "phases") if row["round"] >= 0]
    if not rows:
        raise UserError("no instrumented pass went beyond its prefill; see `timeline` in params.yaml")
    result = {}
    for method in theme.ordered(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        emitted = {(row["dataset"], row["prompt_id"], row["round"]): row["emitted"] for row in own}
        tokens = sum(emitted.values())
        passes = {(row["dataset"], row["prompt_id"]) for row in own}
        whole = 0.0
        for one in passes:
            here = [row for row in own if (row["dataset"], row["prompt_id"]) == one]
            whole += max(row["end_ms"] for row in here) - min(row["start_ms"] for row in here)
        forwards, lasted = dict.fromkeys(BESIDES, 0.0), dict.fromkeys(BESIDES, 0.0)
        for row in own:
            forwards[row["phase"]] += row["forward_ms"] / tokens
            lasted[row["phase"]] += (row["end_ms"] - row["start_ms"]) / tokens
        lasted["other"] = max(0.0, whole / tokens - sum(lasted.values()))
        parts = {label: forwards[phase] for phase, label in FORWARDS.items()}
        result[method] = parts | {label: lasted[phase] - forwards[phase] for phase, label in BESIDES.items()}
    return result


def _outside(parts: Mapping[str, float]) -> float:
    """Share of the time of rounds that is outside model forwards."""
    return sum(parts[label] for label in BESIDES.values()) / sum(parts.values())


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Per method, the fastest first: milliseconds per token, and the share outside model forwards."""
    sentences = []
    for method, parts in sorted(_spent(tables).items(), key=lambda found: sum(found[1].values())):
        taken = f"{grammar.number(sum(parts.values()))} ms per token"
        sentences.append(f"{theme.display(method)} takes {taken}, {_outside(parts):.1%} of it outside model forwards.")
    return captions.short([*sentences, "One prompt, instrumented, prefill left out."])
