"""What each swept knob changes: a panel per experiment, data set and knob, all else held. Knows only the summary."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from dynatree import theme
from dynatree.errors import UserError

TABLES: tuple[str, ...] = ("summary",)
SECTION = "Settings"

METRICS = {"speedup": "speedup (×)", "tokens_per_iteration": "tokens per round"}
BASELINE = "autoregressive"
NOT_SWEPT = ("headline", "penalised")
WIDTH, HEIGHT, COLUMNS = 210, 150, 3
LABEL = 10  # pixels a label of a thin line
SETTINGS = "settings"


class Panel(NamedTuple):
    """One knob of one experiment on one data set: its points, and the methods whose knobs stay put."""

    experiment: str
    dataset: str
    metric: str
    knob: str
    points: list[theme.Row]
    steady: list[theme.Row]


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """Panels, three a line; raises UserError if there is no experiment besides the headline."""
    panels = _panels(tables)
    methods = theme.ordered(row["method"] for panel in panels for row in panel.points + panel.steady)
    entries = [(theme.display(name), theme.colour(name), theme.colour(name)) for name in methods]
    entries.append((f"dashed: {theme.display(BASELINE)} = 1", "white", "white"))
    colours = theme.colour_scale(methods)
    charts = [_chart(panel, [p for p in panels if p.metric == panel.metric], colours) for panel in panels]
    width = min(len(charts), COLUMNS) * (WIDTH + 40)
    return theme.finish(alt.vconcat(theme.key(entries, width), alt.concat(*charts, columns=COLUMNS, spacing=20)))


def _chart(panel: Panel, alike: list[Panel], colours: alt.Scale) -> theme.Layers:
    """Bold: the other knobs at their usual values; thin, labelled: at other values."""
    ends = [v for p in alike for r in p.points + p.steady for v in (r["value"], r["low"], r["high"]) if v is not None]
    low, high = min(*ends, 1.0), max(*ends, 1.0)
    margin = (high - low) * 0.06 + 0.01
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False, zero=False)
    order = sorted({row["x"] for row in panel.points}, key=theme.knob_key)
    held = sorted({row["held"] for row in panel.points if row["usual"] and row["held"]})
    title = alt.TitleParams(f"{panel.experiment}, {panel.dataset}", subtitle="; ".join(held)[:48] or "\u00a0")
    x = alt.X(
        "x:O",
        sort=order,
        scale=alt.Scale(domain=order),
        axis=alt.Axis(title=panel.knob, labelAngle=0 if max(map(len, order)) < 6 else -35, labelExpr=NONE_SHOWN),
    )
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(title=METRICS[panel.metric], tickCount=5))
    colour = alt.Color("method:N", scale=colours, legend=None)
    one = alt.Chart(theme.data([{"one": 1.0}]), width=WIDTH, height=HEIGHT, title=title)
    layers = [one.mark_rule(color=theme.QUIET, strokeDash=[4, 3]).encode(y=alt.Y("one:Q", scale=scale))]
    if panel.steady:
        steady = alt.Chart(theme.data(panel.steady)).mark_rule(strokeWidth=1.5)
        layers.append(steady.encode(y=y, color=colour))
    usual = alt.Chart(theme.data([row for row in panel.points if row["usual"]])).encode(x=x, color=colour)
    other = [row for row in panel.points if not row["usual"]]
    if other:
        thin = alt.Chart(theme.data(other)).encode(x=x, y=y, detail="line:N", color=colour)
        layers.append(thin.mark_line(strokeWidth=1, opacity=0.45))
        last = {row["line"]: row for row in sorted(other, key=lambda row: order.index(row["x"]))}
        names = alt.Chart(theme.data(_apart(list(last.values()), (high - low + 2 * margin) / HEIGHT * LABEL)))
        names = names.mark_text(align="left", dx=4, fontSize=LABEL)
        layers.append(names.encode(x=x, y=alt.Y("place:Q", scale=scale), text="differs:N", color=colour))
    if panel.knob != SETTINGS:
        layers.append(usual.mark_line(strokeWidth=2).encode(y=y, detail="line:N"))
    layers.append(usual.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"))
    dots = usual.mark_point(filled=True, size=60, opacity=1)
    layers.append(dots.encode(y=y))
    return alt.layer(*layers)


def _apart(rows: list[theme.Row], gap: float) -> list[theme.Row]:
    """Rows with `place`, their values pushed upwards until labels at one x are `gap` apart."""
    placed: list[theme.Row] = []
    lowest: dict[str, float] = {}
    for row in sorted(rows, key=lambda row: row["value"]):
        place = max(row["value"], lowest.get(row["x"], row["value"]))
        lowest[row["x"]] = place + gap
        placed.append(row | {"place": place})
    return placed


NONE_SHOWN = "datum.label == 'None' ? 'none' : datum.label"


def _panels(tables: Mapping[str, pa.Table]) -> list[Panel]:
    rows = [row for row in theme.rows(tables, "summary") if row["experiment"] not in NOT_SWEPT]
    panels = []
    for experiment in sorted({row["experiment"] for row in rows}):
        own = [row for row in rows if row["experiment"] == experiment and row["value"] is not None]
        metric = next((name for name in METRICS if any(row["metric"] == name for row in own)), None)
        if metric:
            chosen = [r for r in own if r["metric"] == metric and r["method"] != BASELINE]
            for dataset in sorted({row["dataset"] for row in chosen}):
                here = [row for row in chosen if row["dataset"] == dataset]
                panels += _experiment(experiment, dataset, metric, here)
    if not panels:
        found = ", ".join(sorted({row["experiment"] for row in rows})) or "only headline"
        raise UserError(f"no sweep to draw: need {' or '.join(METRICS)} of another experiment; found {found}")
    return panels


def _experiment(experiment: str, dataset: str, metric: str, rows: list[theme.Row]) -> list[Panel]:
    panels: list[Panel] = []
    steady: list[theme.Row] = []
    moving: list[theme.Row] = []
    knobs: list[str] = []
    for method in theme.ordered(row["method"] for row in rows):
        own = [row | {"knobs": theme.knobs(row["settings"])} for row in rows if row["method"] == method]
        varying = _varying([row["knobs"] for row in own])
        (moving if varying else steady).extend(own)
        knobs += [knob for knob in varying if knob not in knobs]
    for knob in knobs:
        if points := [_plain(point) for point in _points(moving, knob)]:
            panels.append(Panel(experiment, dataset, metric, knob, points, [_plain(row) for row in steady]))
    drawn = {(row["method"], row["settings"]) for panel in panels for row in panel.points + panel.steady}
    left = [_plain(row) for row in moving + steady if (row["method"], row["settings"]) not in drawn]
    if left:  # settings that differ from all others in more than one knob
        names = theme.labels((row["method"], row["settings"]) for row in left)
        points = [
            row | {"x": names[row["method"], row["settings"]], "line": "", "usual": True, "held": "", "differs": ""}
            for row in left
        ]
        panels.append(Panel(experiment, dataset, metric, SETTINGS, points, []))
    return panels


def _varying(settings: list[dict[str, str]]) -> list[str]:
    names = list(dict.fromkeys(name for one in settings for name in one))
    return [name for name in names if len({one.get(name) for one in settings}) > 1]


def _points(rows: list[theme.Row], knob: str) -> list[theme.Row]:
    """Rows on lines along `knob`; a line holds every other knob, the usual one at its most frequent values."""
    points = []
    for method in theme.ordered(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and knob in row["knobs"]]
        others = [name for name in _varying([row["knobs"] for row in own]) if name != knob]
        lines: dict[tuple[str | None, ...], list[theme.Row]] = {}
        for row in own:
            lines.setdefault(tuple(row["knobs"].get(name) for name in others), []).append(row)
        usual = {name: Counter(row["knobs"].get(name) for row in own).most_common(1)[0][0] for name in others}
        longest = max((len({r["knobs"][knob] for r in line}) for line in lines.values()), default=0)
        centre = tuple(usual.values())
        if len(lines.get(centre, [])) < 2 and lines:
            centre = next(held for held, line in lines.items() if len({r["knobs"][knob] for r in line}) == longest)
        for held, line in lines.items():
            if len({row["knobs"][knob] for row in line}) < 2:
                continue
            here = {n: v for n, v in zip(others, held, strict=True) if v is not None}
            differs = {n: v for n, v in here.items() if v != centre[others.index(n)]}
            points += [
                row
                | {"x": row["knobs"][knob], "usual": held == centre, "line": f"{method} {held}"}
                | {"held": theme.knob_text(here), "differs": theme.knob_text(differs)}
                for row in line
            ]
    return points


def _plain(row: theme.Row) -> theme.Row:
    return {key: value for key, value in row.items() if key != "knobs"}


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Per panel: the best value of the knob, what it gives, whether that is resolved, and the worst."""
    parts = []
    for panel in _panels(tables):
        here = [row for row in panel.points if row["usual"]]
        together = panel.knob == SETTINGS
        for method in [""] if together else theme.ordered(row["method"] for row in here):
            own = [row for row in here if together or row["method"] == method]
            parts.append(_sentence(panel, sorted(own, key=lambda row: -row["value"])))
    return " ".join([*parts, f"Dashed: {theme.display(BASELINE).lower()} decoding, 1 by definition."])


def _sentence(panel: Panel, ranked: list[theme.Row]) -> str:
    best, worst = ranked[0], ranked[-1]
    what = panel.metric.replace("_", " ")
    who = "best is" if panel.knob == SETTINGS else f"{theme.display(best['method'])} is best at"
    text = f"{panel.experiment}, {panel.knob} ({panel.dataset}): {who} {theme.knob_value(best['x'])}"
    text += f", {what} {theme.interval(best)}"
    if panel.metric == "speedup":
        text += (
            f" ({'resolved' if best['resolved'] else 'not resolved'} with {theme.plural(best['prompts'], 'prompt')})"
        )
    if worst is not best:
        text += f"; worst {theme.knob_value(worst['x'])}, {theme.number(worst['value'])}"
    return text + "."
