"""The paired benchmark: all methods of a prompt in one process, in rotating order, so that a slow spell hits all alike.

Timings of separate jobs can only be compared through a reference; these are compared directly.
"""

import time
from collections.abc import Sequence
from itertools import product
from typing import Any

from dynatree import measure, statistics
from dynatree.audit import audit
from dynatree.model import LanguageModel
from dynatree.processors import Processors
from dynatree.text.prompts import Prompt

BASELINES = ("autoregressive", "transformers")
# The plain loop once more at the end: how far a ratio strays by chance.
AGAIN = "autoregressive_again"

Row = dict[str, Any]


def combinations(knobs: dict[str, Any], grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """`knobs` with every combination of the values that `grid` lists."""
    return [knobs | dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def tune(decoders: Sequence[Any], prompts: Sequence[Prompt], output_tokens: int, processors: Processors) -> list[float]:
    """Seconds of each decoder over all `prompts`, which are of the tuning split; they take turns prompt by prompt."""
    seconds = [0.0] * len(decoders)
    for prompt in prompts:
        for place, decoder in enumerate(decoders):
            seconds[place] += decoder.decode(prompt.ids, output_tokens, processors=processors).seconds
    return seconds


def paired(
    target: LanguageModel,
    decoders: dict[str, Any],
    prompt: Prompt,
    output_tokens: int,
    processors: Processors,
    turn: int,
    tolerance: float,
) -> list[Row]:
    """One record a method, and `AGAIN`, in the order run: that of `decoders`, begun at the method number `turn`.

    Raises UserError if an output is not exact.
    """
    names = list(decoders)
    order = names[turn % len(names) :] + names[: turn % len(names)]
    rows = [_run(target, decoders[name], name, prompt, output_tokens, processors) for name in order]
    rows.append(_run(target, decoders["autoregressive"], AGAIN, prompt, output_tokens, processors))
    plain = next(row["output_ids"] for row in rows if row["method"] == "autoregressive")
    for row in rows:
        row["identical"] = row["output_ids"] == plain
        audited = audit(target, prompt.ids, row["output_ids"], tolerance, processors)
        row |= {key: audited[key] for key in _AUDITED}
    return rows


_AUDITED = ("flips", "largest_gap", "repetition")


def _run(
    target: LanguageModel, decoder: Any, name: str, prompt: Prompt, output_tokens: int, processors: Processors
) -> Row:
    measure.synchronise(target.device)
    begin = time.perf_counter()
    trace = decoder.decode(prompt.ids, output_tokens, processors=processors)
    measure.synchronise(target.device)
    return {
        "method": name,
        "prompt_id": prompt.prompt_id,
        "document_id": prompt.document_id,
        "dataset": prompt.dataset,
        "seconds": time.perf_counter() - begin,
        "commits": trace.commits,
        "emitted": [trace.first, *(len(r.emitted) for r in trace.rounds)],
        "output_ids": trace.output,
        "target_forwards": trace.target_forwards,
        "draft_forwards": trace.draft_forwards,
        "drafted": sum(r.drafted for r in trace.rounds),
        "accepted": sum(r.accepted for r in trace.rounds),
    }


def summary(text: str, rows: Sequence[Row]) -> list[Row]:
    """Rows of the table `benchmark` (schema.py) for one kind of `text`: per data set and over all of them."""
    result = []
    for dataset in [*sorted({row["dataset"] for row in rows}), "all"]:
        here = [row for row in rows if dataset in ("all", row["dataset"])]
        seconds = {(row["method"], row["prompt_id"]): row["seconds"] for row in here}
        for baseline in BASELINES:
            for method in dict.fromkeys(row["method"] for row in here):
                own = [row for row in here if row["method"] == method]
                ratios = [seconds[baseline, row["prompt_id"]] / row["seconds"] for row in own]
                ends = statistics.interval(ratios, [row["document_id"] for row in own], geometric=True)
                result.append(
                    {
                        "text": text,
                        "dataset": dataset,
                        "method": method,
                        "baseline": baseline,
                        "prompts": len(own),
                        "documents": len({row["document_id"] for row in own}),
                        "value": statistics.mean(ratios, geometric=True),
                        "low": ends[0] if ends else None,
                        "high": ends[1] if ends else None,
                        "worst": min(ratios),
                        "resolved": statistics.resolved(ends, len(own)),
                        "throughput": statistics.mean(
                            [len(row["output_ids"]) / row["seconds"] for row in own], geometric=True
                        ),
                        "repetition": statistics.mean([row["repetition"] for row in own], geometric=False),
                        "identical": statistics.mean([float(row["identical"]) for row in own], geometric=False),
                    }
                )
    return result
