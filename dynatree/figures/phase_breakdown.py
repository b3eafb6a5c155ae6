"""Where the time of a token goes: model forwards, and what drafting, selecting, verifying and keeping take besides;
from instrumented passes. Knows no run.
"""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import grammar, legends, queries, theme

TABLES: tuple[str, ...] = ("phases",)
SECTION = "Costs"

WIDTH, STEP = 460, 34
# Forwards, by the phase that they are in, then what each phase takes besides. Prefill comes once a request and is left
# out; `other` is what lies between the phases.
FORWARDS = {"verify": ("target forward", "#5a5a5a"), "draft": ("draft forwards", "#c9c9c9")}
BESIDES = {
    "draft": ("drafting besides", "#0072b2"),
    "select": ("selecting", "#222222"),
    "verify": ("verifying besides", "#cc79a7"),
    "cache": ("keeping the path", "#8a6d3b"),
    "other": ("other", "#e69f00"),
}


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A bar per method: milliseconds per token after the prefill, by part. Raises UserError without any pass."""
    spent = _spent(tables)
    names = [theme.display(method) for method in spent]
    tones = dict([*FORWARDS.values(), *BESIDES.values()])
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
        parts = {label: forwards[phase] for phase, (label, _) in FORWARDS.items()}
        result[method] = parts | {label: lasted[phase] - forwards[phase] for phase, (label, _) in BESIDES.items()}
    return result


def _outside(parts: Mapping[str, float]) -> float:
    """Share of the time of rounds that is outside model forwards."""
    return sum(parts[label] for label, _ in BESIDES.values()) / sum(parts.values())


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Per method: milliseconds per token, the share outside model forwards, and what it consists of."""
    sentences = []
    for method, parts in _spent(tables).items():
        total = sum(parts.values())
        shares = {label: parts[label] / total for label, _ in BESIDES.values()}
        named = [f"{label} {share:.1%}" for label, share in shares.items() if share >= 5e-4]
        sentence = (
            f"{theme.display(method)} takes {grammar.number(total)} ms per token, {_outside(parts):.1%} of it outside"
        )
        sentences.append(f"{sentence} model forwards{': ' if named else ''}{', '.join(named)}.")
    return " ".join(
        [
            "One prompt, instrumented, prefill left out; milliseconds at the pace that was usual among the passes.",
            *sentences,
        ]
    )
