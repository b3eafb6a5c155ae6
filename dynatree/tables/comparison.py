"""The benchmark's table: methods compared prompt by prompt, from the records of measuring/benchmark.py. Knows no model.

Speeds are in tokens per autoregressive step, of steps that were timed meanwhile (measuring/clock.py).
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import product

from dynatree.tables import bootstrap, metrics
from dynatree.tables.rounds import Row, parts_of, token_seconds

AUTOREGRESSIVE = "autoregressive"
# Parts of an output are compared with these alone.
BASELINES = (AUTOREGRESSIVE, "transformers")
WHOLE = "whole"


def summary(
    text: str, rows: Sequence[Row], again: Mapping[str, Sequence[Row]], baselines: Sequence[str] = BASELINES
) -> list[Row]:
    """Rows of the table `benchmark` (schema.py) for one kind of `text`: per data set and over all of them, every method
    over every method, and by part of the output over `baselines`.

    `again`: by method, records of it and of autoregressive decoding on its slowest prompt, taking turns.
    """
    repeats = {method: _median_ratio(method, timed) for method, timed in again.items()}
    rows = _with_steps(rows)
    usual = bootstrap.median([row["step"] for row in rows])
    rows = [row | {"speeds": _speeds(row)} for row in rows]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    result = []
    for dataset in [*sorted({row["dataset"] for row in rows}), "all"]:
        here = [row for row in rows if dataset in ("all", row["dataset"])]
        for method, baseline in product(methods, methods):
            own, other = ([row for row in here if row["method"] == name] for name in (method, baseline))
            key = {"text": text, "dataset": dataset, "method": method, "baseline": baseline}
            for part in own[0]["speeds"] if baseline in baselines else (WHOLE,):
                again_here = (dataset, baseline, part) == ("all", AUTOREGRESSIVE, WHOLE)
                if compared := _compared(own, other, part, usual):
                    result.append(key | compared | {"worst_again": repeats.get(method) if again_here else None})
    return result


def fastest(rows: Sequence[Row], names: Sequence[str]) -> dict[str, str]:
    """By kind of text, of `names` the method that is fastest over all data sets, by the `rows` of `summary`."""
    found = [row for row in rows if (row["dataset"], row["part"], row["baseline"]) == ("all", WHOLE, names[0])]
    texts = dict.fromkeys(row["text"] for row in found)
    ranked = sorted((row for row in found if row["method"] in names), key=lambda row: -row["value"])
    return {text: next(row["method"] for row in ranked if row["text"] == text) for text in texts}


def _compared(own: Sequence[Row], other: Sequence[Row], part: str, usual: float) -> Row | None:
    """Of a method's records over another's, prompt by prompt, on a part of the output; None: no prompt has it in both.

    `usual`: seconds of an autoregressive step.
    """
    baseline = {row["prompt_id"]: row["speeds"] for row in other}
    both = [row for row in own if part in row["speeds"] and part in baseline[row["prompt_id"]]]
    if not both:
        return None
    ratios = [row["speeds"][part] / baseline[row["prompt_id"]][part] for row in both]
    # Two data sets may call documents alike.
    documents = [(row["document_id"], row["dataset"]) for row in both]
    ends = bootstrap.interval(ratios, documents, geometric=True)
    return {
        "part": part,
        "prompts": len(both),
        "documents": len(set(documents)),
        "value": bootstrap.mean(ratios, geometric=True),
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
        "worst": min(ratios),
        "significant": bootstrap.significant(ends, len(both)),
        "throughput": bootstrap.mean([row["speeds"][part] / usual for row in both], geometric=True),
        "repetition": bootstrap.mean([row["repetition"] for row in own], geometric=False),
        "identical": _share([row["identical"] for row in own]),
    }


def _share(found: Sequence[bool | None]) -> float | None:
    """How many of those that are known are true; None: none is known."""
    known = [float(one) for one in found if one is not None]
    return bootstrap.mean(known, geometric=False) if known else None


def _speeds(row: Row) -> dict[str, float]:
    """Tokens per autoregressive step: of the whole output, prefill included, and of each quarter, without prefill."""
    step, total = row["step"], len(row["output_ids"])
    speeds = {WHOLE: total * step / row["seconds"]}
    first, *counts = row["emitted"]
    for part, taken in parts_of(token_seconds(first, counts, row["commits"]), total).items():
        speeds[part] = len(taken) * step / sum(taken)
    return speeds


def slowest(rows: Sequence[Row], method: str) -> str:
    """Id of the prompt on which `method` is slowest, relative to autoregressive decoding."""
    steps = {(row["method"], row["prompt_id"]): row["seconds"] / row["step"] for row in _with_steps(rows)}
    prompts = [row["prompt_id"] for row in rows if row["method"] == method]
    return str(min(prompts, key=lambda prompt: steps[AUTOREGRESSIVE, prompt] / steps[method, prompt]))


def _median_ratio(method: str, timed: Sequence[Row]) -> float:
    """Median of autoregressive decoding's steps over those of `method`, turn by turn."""
    rows = _with_steps(timed)
    usual, own = (
        [row["seconds"] / row["step"] for row in rows if row["method"] == name] for name in (AUTOREGRESSIVE, method)
    )
    return statistics.median([ours / theirs for ours, theirs in zip(usual, own, strict=True)])


def _with_steps(rows: Sequence[Row]) -> list[Row]:
    """`rows`, each with the seconds that an autoregressive `step` took meanwhile."""
    # Those of a prompt were timed one after another.
    among: dict[str, list[float]] = {}
    for row in rows:
        among.setdefault(row["prompt_id"], []).extend(row["references"])
    return [row | {"step": metrics.step_seconds(row["references"], among[row["prompt_id"]])} for row in rows]
