"""Where the time of a token goes: drafting, selecting, verifying, keeping; from instrumented passes. Knows no run."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree import theme
from dynatree.errors import UserError

TABLES: tuple[str, ...] = ("phases",)
SECTION = "Costs"

WIDTH, STEP = 460, 34
# Prefill comes once a request and is left out; `other` is what lies between the phases.
PHASES = {
    "draft": ("draft", "#c9c9c9"),
    "select": ("select nodes", "#222222"),
    "verify": ("verify", "#5a5a5a"),
    "cache": ("keep path", "#8a6d3b"),
    "other": ("other", "#e6e6e6"),
}


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A bar a method: milliseconds a token after the prefill, by phase. Raises UserError without any pass."""
    spent = _spent(tables)
    names = [theme.display(method) for method in spent]
    rows: list[theme.Row] = []
    for method, phases in spent.items():
        start = 0.0
        for phase in PHASES:
            end = start + phases.get(phase, 0.0)
            rows.append({"name": theme.display(method), "phase": phase, "x": start, "x2": end})
            start = end
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=6))
    scale = alt.Scale(domain=list(PHASES), range=[colour for _, colour in PHASES.values()])
    largest = max(row["x2"] for row in rows)
    x_scale = alt.Scale(domain=[0, largest * 1.12], nice=False)
    bars = (
        alt.Chart(theme.data(rows), width=WIDTH, height=alt.Step(STEP))
        .mark_bar(height=18)
        .encode(
            y=y,
            x=alt.X("x:Q", scale=x_scale, axis=alt.Axis(title="ms a token", tickCount=6)),
            x2="x2:Q",
            color=alt.Color("phase:N", scale=scale, legend=None),
        )
    )
    totals = [
        {"name": theme.display(method), "x": sum(phases.values()), "words": theme.number(sum(phases.values()))}
        for method, phases in spent.items()
    ]
    words = alt.Chart(theme.data(totals)).mark_text(align="left", dx=5, color=theme.INK)
    words = words.encode(y=y, x=alt.X("x:Q", scale=x_scale), text="words:N")
    key = theme.key([(label, colour, colour) for label, colour in PHASES.values()], WIDTH)
    return theme.finish(alt.vconcat(key, bars + words))


def _spent(tables: Mapping[str, pa.Table]) -> dict[str, dict[str, float]]:
    """Milliseconds a token after the prefill, by method and phase."""
    rows = [row for row in theme.rows(tables, "phases") if row["round"] >= 0]
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
        spent = {
            phase: sum(row["end_ms"] - row["start_ms"] for row in own if row["phase"] == phase) / tokens
            for phase in PHASES
        }
        spent["other"] = max(0.0, whole / tokens - sum(spent.values()))
        result[method] = spent
    return result


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Per method: milliseconds a token, and the shares of its phases."""
    parts = []
    for method, phases in _spent(tables).items():
        total = sum(phases.values())
        shares = [f"{PHASES[name][0]} {ms / total:.0%}" for name, ms in phases.items() if ms / total >= 0.005]
        parts.append(f"{theme.display(method)} takes {theme.number(total)} ms a token: {', '.join(shares)}.")
    return " ".join(
        [
            "One prompt, instrumented, prefill left out; milliseconds at the pace that was usual among the passes.",
            *parts,
        ]
    )
