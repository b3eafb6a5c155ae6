"""Throughput and speedup after 100, 200, ... output tokens, read off the commits of one long run a prompt.

A greedy run of T tokens begins with the run of every shorter length; length L takes the time of the commit that
reaches it.
"""

from collections import defaultdict
from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import axes, captions, grammar, legends, panels, queries, theme
from dynatree.tables import bootstrap

TABLES: tuple[str, ...] = ("runs", "rounds")
SECTION = "Speed"

EXPERIMENT = "length_scaling"
ONE = ("prompt_tokens", "batches", "dtypes")  # it tells none of them apart
LENGTHS = (100, 200, 300, 500, 1000)
METRICS = {"throughput": "tokens/s", "speedup": "speedup (×)"}
SIZE = (270, 170)

# (ms until the length is reached, at the machine's usual pace; document)
Timed = tuple[float, str]


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A column per data set: tokens/s above, speedup below. Raises UserError without autoregressive runs."""
    rows = _rows(tables)
    ticks = sorted({row["x"] for row in rows})
    x = axes.lengths("output tokens", ticks)
    columns: list[alt.VConcatChart] = []
    singles: list[queries.Row] = []
    for title, here in queries.places(rows):
        stacked = []
        for metric, unit in METRICS.items():
            shown = [row for row in here if row["metric"] == metric]
            if metric == "speedup":
                shown = [row for row in shown if row["method"] != queries.AUTOREGRESSIVE]
            if shown:
                speedup = metric == "speedup"
                every = [row for row in rows if row["metric"] == metric]
                axis = axes.values(unit, [*every, *_singles(every)], one=speedup)
                head = "" if speedup else f"{title} ({captions.prompts(shown)})"
                singles += (own := _singles(shown))
                placed = axes.beside([*shown, *own], ticks, SIZE[0])
                points, small = placed[: len(shown)], placed[len(shown) :]
                stacked.append(panels.lines(points, x, axis, SIZE, title=head, one=speedup, singles=small))
        columns.append(alt.vconcat(*stacked, spacing=12))
    return theme.finish(
        alt.vconcat(
            legends.boxes(legends.significance(rows, singles), SIZE[0] * len(columns) + 120),
            alt.hconcat(*columns, spacing=24),
        )
    )


def _rows(tables: Mapping[str, pa.Table]) -> list[queries.Row]:
    """Rows like those of `summary`, with the length `x` and the `label`, in drawing order."""
    timed = _timed(tables)
    names = queries.labels({key[1:] for key in timed})
    rows = []
    for dataset in sorted({key[0] for key in timed}):
        here = {series: timed[dataset, *series] for series in names if (dataset, *series) in timed}
        usual = next((times for (method, _), times in here.items() if method == queries.AUTOREGRESSIVE), None)
        if usual is None:
            raise UserError(f"{EXPERIMENT}: no run of {queries.AUTOREGRESSIVE} on {dataset} to compare with")
        for length in _lengths(list(here.values())):
            # The prompts that every method brings so far, so that all are judged on the same ones.
            common = set.intersection(*({key for key, at in times.items() if length in at} for times in here.values()))
            for (method, settings), times in here.items():
                for metric in METRICS if common else ():
                    rows.append(
                        {"dataset": dataset, "method": method, "settings": settings, "label": names[method, settings]}
                        | {"x": length, "metric": metric}
                        | _mean(metric, length, {key: (times[key][length], usual[key][length]) for key in common})
                    )
    if not rows:
        raise UserError(f"{EXPERIMENT}: no prompt that every method was run on")
    return rows


def _singles(rows: list[queries.Row]) -> list[queries.Row]:
    """A row for each of the `singles` of rows of few prompts."""
    return [row | {"value": value, "low": None, "high": None} for row in rows for value in row["singles"]]


def _lengths(series: list[dict[tuple[str, int], dict[int, Timed]]]) -> list[int]:
    """The LENGTHS that some run of every series reaches; where outputs are shorter than all of these, their end."""
    reached = set.intersection(*({length for at in times.values() for length in at} for times in series))
    return [length for length in LENGTHS if length in reached] or sorted(reached)[-1:]


def _timed(tables: Mapping[str, pa.Table]) -> dict[tuple[str, str, str], dict[tuple[str, int], dict[int, Timed]]]:
    """Per (data set, method, settings), (prompt, repeat) and length: when it was reached."""
    runs = queries.rows(tables, "runs", experiment=EXPERIMENT)
    if (most := max(run["batch"] for run in runs)) > 1:
        raise UserError(f"{EXPERIMENT}: batch {most}, whose requests share their time; this figure is of batch 1")
    commits = defaultdict(list)
    for row in queries.rows(tables, "rounds", experiment=EXPERIMENT):
        commits[_run(row)].append((row["output_tokens"], row["commit_ms"]))
    result: dict[tuple[str, str, str], dict[tuple[str, int], dict[int, Timed]]] = defaultdict(dict)
    # A common end for outputs that are shorter than every length.
    shortest = min(run["output_tokens"] for run in runs)
    for run in runs:
        at = {}
        for length in {*LENGTHS, shortest}:
            ms = min((ms for tokens, ms in commits[_run(run)] if tokens >= length), default=None)
            if ms is not None:
                at[length] = (ms * run["pace"], run["document_id"])
        result[run["dataset"], run["method"], run["settings"]][run["prompt_id"], run["repeat"]] = at
    return result


def _run(row: queries.Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("dataset", "method", "settings", "prompt_id", "repeat"))


def _mean(metric: str, length: int, pairs: dict[tuple[str, int], tuple[Timed, Timed]]) -> queries.Row:
    """Geometric mean over prompts of tokens/s, or of the ratio of times, with its interval."""
    keys = sorted(pairs)
    speedup = metric == "speedup"
    values = [(pairs[k][1][0] if speedup else 1000 * length) / pairs[k][0][0] for k in keys]
    documents = [pairs[key][0][1] for key in keys]
    ends = bootstrap.interval(values, documents, geometric=True)
    prompts = len({prompt for prompt, _ in keys})
    return {
        "prompts": prompts,
        "singles": values if prompts < bootstrap.MINIMUM_PROMPTS else [],
        "value": bootstrap.mean(values, geometric=True),
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
        "significant": bootstrap.significant(ends, prompts) if speedup else None,
    }


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who is fastest at which length, by how much at both ends, whether significant; how far outputs go."""
    rows = _rows(tables)
    names = {(row["method"], row["settings"]): row["label"] for row in rows}
    lists = []
    for title, here in queries.places(rows):
        lengths = sorted({row["x"] for row in here})
        ratios = [row for row in here if row["metric"] == "speedup" and row["method"] != queries.AUTOREGRESSIVE]
        reached = f"On {title} all methods reach {grammar.joined([f'{n:,}' for n in lengths])} tokens"
        told = captions.fastest_along(ratios, names, "tokens", title) if ratios else []
        lists.append([*told, f"{reached} ({captions.prompts(here)})."])
    return captions.short(captions.in_turn(lists))
