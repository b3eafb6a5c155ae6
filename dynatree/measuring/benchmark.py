"""The paired benchmark: all methods of a prompt in one process, in rotating order, so that a slow spell hits all alike.

Within a prompt's turn timings drift, too: what is compared is a method's time in autoregressive steps that were timed
meanwhile (clock.py).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dynatree import files
from dynatree.data.prompts import Prompt
from dynatree.decoding import Decoder, comparable
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import runs
from dynatree.measuring.audit import audit
from dynatree.measuring.clock import StepSampler, alone
from dynatree.tables.comparison import AUTOREGRESSIVE
from dynatree.tables.metrics import step_seconds

# The autoregressive loop once more: how far a ratio strays by chance.
AGAIN = "autoregressive_again"

Row = dict[str, Any]


def combinations(knobs: dict[str, Any], grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """`knobs` with every combination of the values that `grid` lists."""
    return [knobs | dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def tune(
    target: LanguageModel, decoders: Sequence[Decoder], prompts: Sequence[Prompt], options: GenerationOptions
) -> list[float]:
    """Time of each decoder over all `prompts`, which are of the tuning split, in autoregressive steps, by turns."""
    steps, sampler = [0.0] * len(decoders), StepSampler(target)
    for key, prompt in enumerate(prompts):
        asked = options.keyed([key])
        timed = [runs.timed(decoder, sampler, [prompt.ids], asked) for decoder in decoders]
        # A stall that one's clock met is told by those of the others.
        among = [sample for _, clock in timed for sample in clock.samples]
        for place, ((trace,), clock) in enumerate(timed):
            steps[place] += trace.seconds / step_seconds(clock.samples, among)
    return steps


def tuned(
    path: Path,
    method: dict[str, Any],
    grid: dict[str, list[Any]],
    target: LanguageModel,
    build: Callable[[dict[str, Any]], Decoder],
    prompts: Sequence[Prompt],
    options: GenerationOptions,
) -> dict[str, Any]:
    """`best`: the fastest of the method's combinations on the tuning `prompts`; `at_the_edge_of`: the knobs of which it
    has the largest or smallest value. With all that were tried it is kept at `path`.
    """
    if not path.is_file():
        tried = combinations(method, grid)
        decoders = [build(one) for one in tried]
        with alone():
            for decoder in decoders:
                runs.warm_up(decoder, [prompts[0].ids], options)
            steps = tune(target, decoders, prompts, options)
        best = tried[steps.index(min(steps))]
        # One token, level or child is the least there is.
        ends = {knob: {values[0], values[-1]} - {1} for knob, values in grid.items() if len(values) > 2}
        edges = [knob for knob, end in ends.items() if best[knob] in end]
        files.write_json(path, {"best": best, "at_the_edge_of": edges, "tried": tried, "autoregressive_steps": steps})
    found: dict[str, Any] = files.read_json(path)
    edge = f", at the edge of {', '.join(found['at_the_edge_of'])}" if found["at_the_edge_of"] else ""
    print(f"benchmark: {path.stem} tuned: { {knob: found['best'][knob] for knob in grid} }{edge}", file=sys.stderr)
    return found


def paired(
    target: LanguageModel,
    decoders: Mapping[str, Decoder],
    prompt: Prompt,
    options: GenerationOptions,
    turn: int,
    tolerance: float,
) -> list[Row]:
    """One record a method, and `AGAIN` amid them, in the order run: that of `decoders`, begun at number `turn`.

    Raises UserError if one of them is audited and not exact.
    """
    asked = [*decoders.items()]
    # Half a cycle behind the first time, so that the machine has as long to change as for others.
    asked.insert(len(asked) // 2 + 1, (AGAIN, decoders[AUTOREGRESSIVE]))
    first = turn % len(asked)
    sampler = StepSampler(target)
    rows = [run(decoder, sampler, name, prompt, options) for name, decoder in asked[first:] + asked[:first]]
    plain = next(row["output_ids"] for row in rows if row["method"] == AUTOREGRESSIVE)
    for row in rows:
        decoder = decoders.get(row["method"], decoders[AUTOREGRESSIVE])
        # Where tokens are drawn otherwise there is nothing to be identical with.
        row["identical"] = row["output_ids"] == plain if decoder.shared_noise or not options.sampled else None
        facts = audit(target, prompt.ids, row["output_ids"], tolerance, options, comparable(decoder, options))
        row |= {key: facts[key] for key in _AUDITED}
    return rows


_AUDITED = ("flips", "largest_gap", "repetition")


def repeated(
    target: LanguageModel,
    decoders: Mapping[str, Decoder],
    method: str,
    prompt: Prompt,
    options: GenerationOptions,
    times: int,
) -> list[Row]:
    """Records of our autoregressive loop and of `method`, taking turns on `prompt`, `times` times over."""
    for name in (AUTOREGRESSIVE, method):
        runs.warm_up(decoders[name], [prompt.ids], options)
    sampler = StepSampler(target)
    return [
        run(decoders[name], sampler, name, prompt, options)
        for turn in range(times)
        for name in (AUTOREGRESSIVE, method)[:: 1 if turn % 2 == 0 else -1]
    ]


def run(decoder: Decoder, sampler: StepSampler, name: str, prompt: Prompt, options: GenerationOptions) -> Row:
    """One record: `decoder` on `prompt`, with autoregressive steps timed meanwhile."""
    (trace,), clock = runs.timed(decoder, sampler, [prompt.ids], options)
    return {
        "method": name,
        "prompt_id": prompt.prompt_id,
        "document_id": prompt.document_id,
        "dataset": prompt.dataset,
        "seconds": trace.seconds,
        "references": clock.samples,
        "commits": trace.commits,
        "emitted": [trace.first, *(len(r.emitted) for r in trace.rounds)],
        "output_ids": trace.output,
        "target_forwards": trace.target_forwards,
        "draft_forwards": trace.draft_forwards,
        "drafted": sum(r.drafted for r in trace.rounds),
        "accepted": sum(r.accepted for r in trace.rounds),
    }
