"""What is read at a glance, from the table `runs`: metrics.json, pace.json, and small tables for DVC's plots.

Knows no model.
"""

from collections import Counter
from typing import Any

from dynatree import settings
from dynatree.tables import bootstrap
from dynatree.tables.metrics import Row, summarise

DIGITS = 4
# Of each method and data set, beside the interval of its speedup and the share of identical outputs.
MEANS = ("speedup", "tokens_per_iteration", "perplexity")
SWEEP = "tree_shape"
KNOBS = ("depth", "branch", "threshold")
# What tells apart runs of the sweep with the same knobs.
CONDITIONS = ("dataset", "prompt_tokens", "batch", "dtype")
ENDS = ("speedup", "low", "high")
# The tables for `dvc plots`.
PLOTS = ("speedup", *KNOBS)


def headline(run_rows: list[Row], machine: Row) -> Row:
    """metrics.json: per method and data set what it reached, and the machine; little enough for `dvc metrics diff`."""
    found: Row = {"machine": machine}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in main_runs(run_rows):
        groups.setdefault((row["method"], row["dataset"]), []).append(row)
    for (method, dataset), rows in groups.items():
        reached = {metric: summary(rows, metric) for metric in MEANS}
        compared = [row["identical"] for row in rows if row["identical"] is not None]
        found.setdefault(method, {})[dataset] = {
            **{metric: values["value"] for metric, values in reached.items()},
            "speedup_interval": interval(reached["speedup"]),
            "identical": round(sum(compared) / len(compared), DIGITS) if compared else None,
        }
    return found


def main_runs(run_rows: list[Row]) -> list[Row]:
    """Rows of the main runs."""
    return [row for row in run_rows if row["experiment"] == "headline"]


def summary(rows: list[Row], metric: str) -> Row:
    """Mean and interval of `metric`, rounded; None for what too few rows have."""
    present = [row for row in rows if row[metric] is not None]
    values = summarise(present, metric) if present else {}
    ends = ((name, values.get(name)) for name in ("value", "low", "high"))
    return {name: round(end, DIGITS) if end is not None else None for name, end in ends}


def point(rows: list[Row]) -> Row:
    """A speedup with its interval, as a row of a table for plots has it."""
    values = summary(rows, "speedup")
    return dict(zip(ENDS, values.values(), strict=True))


def interval(values: Row) -> str | None:
    """The ends of an interval as one entry: DVC's metrics hold no lists."""
    return f"{values['low']} to {values['high']}" if values["low"] is not None else None


def pace(run_rows: list[Row], machine: Row) -> Row:
    """pace.json: what `dynatree estimate` plans with, and how steady the machine was.

    `speedup`: of each method over autoregressive decoding, all data sets together; `autoregressive_step`: what such a
    step took during each request of all experiments, and how it varied meanwhile.
    """
    rows = main_runs(run_rows)
    plain = [row for row in rows if row["method"] == "autoregressive"]
    dtype = (rows or run_rows)[0]["dtype"]
    return {
        "machine": machine,
        "prompt_tokens": max((row["prompt_tokens"] for row in rows), default=None),
        "autoregressive": {name: summary(plain, name)["value"] for name in ("ttft_ms", "tpot_ms")},
        "autoregressive_step": steadiness([row for row in run_rows if row["dtype"] == dtype]),
        "speedup": {
            method: summary([row for row in rows if row["method"] == method], "speedup")["value"]
            for method in dict.fromkeys(row["method"] for row in rows)
        },
    }


def steadiness(rows: list[Row]) -> Row:
    """The usual, the least and the most ms of an autoregressive step; its usual and most deviation within a request."""
    steps, spreads = ([row[name] for row in rows] for name in ("autoregressive_step_ms", "autoregressive_step_spread"))
    found = {"usual_ms": rows[0]["pace"] * steps[0], "least_ms": min(steps), "most_ms": max(steps)}
    found |= {"usual_spread": bootstrap.median(spreads), "most_spread": max(spreads)}
    return {name: round(value, DIGITS) for name, value in found.items()}


def plots(run_rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of the tables for `dvc plots`, by name: speedups of the main runs, and by each knob of the tree's shape."""
    found = [row for row in run_rows if row["speedup"] is not None]
    groups: dict[str, list[Row]] = {}
    for row in main_runs(found):
        groups.setdefault(f"{row['method']}, {row['dataset']}", []).append(row)
    shapes = [row for row in found if row["experiment"] == SWEEP]
    pairs = dict.fromkeys((row["method"], row["settings"]) for row in shapes)
    (method, count), *_ = Counter(method for method, _ in pairs).most_common(1) or [("", 0)]
    swept = [row for row in shapes if row["method"] == method and count > 1]
    return {
        "speedup": [{"run": run, **point(rows)} for run, rows in groups.items()],
        **{knob: sweep(swept, knob) for knob in KNOBS},
    }


def sweep(rows: list[Row], knob: str) -> list[Row]:
    """The speedup by `knob`, all others at the values that most of these runs have; at each of several places."""
    knobs = [settings.parse(row["settings"]) for row in rows]
    names = dict.fromkeys(name for own in knobs for name in own)
    usual = {name: Counter(own.get(name) for own in knobs).most_common(1)[0][0] for name in names}
    line: dict[tuple[Any, str], list[Row]] = {}
    varied = [name for name in CONDITIONS if len({row[name] for row in rows}) > 1]
    for row, own in zip(rows, knobs, strict=True):
        if knob in own and {**own, knob: None} == {**usual, knob: None}:
            line.setdefault((own[knob], ", ".join(str(row[name]) for name in varied)), []).append(row)
    # A limit that is off is none, and stands behind all numbers.
    ordered = sorted(line, key=lambda key: (key[1], key[0] is None, key[0]))
    return [
        {knob: value, **({"place": place} if place else {}), **point(line[value, place])} for value, place in ordered
    ]
