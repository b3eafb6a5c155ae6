"""Run one method over prompts and record what happened: deterministic outputs apart from timings.

How its seconds are compared with others': clock.py.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dynatree import decoding
from dynatree.data.prompts import Prompt
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.logits_processors import PLAIN, Processors
from dynatree.generation.trace import Trace
from dynatree.measuring.clock import PacedClock, Reference, alone, synchronise
from dynatree.measuring.watermark import HighWater

WARM_UP_TOKENS = 16


def generate(
    target: LanguageModel,
    decoder: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    repeats: int = 1,
    batch: int = 1,
    processors: Processors = PLAIN,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(outputs, timings), one of each a prompt and repeat, in equal order. EOS is disabled for every method alike.

    Groups of `batch` prompts are decoded together, in order; the last group may be smaller. `seconds` of a timing are
    those of its whole group, `batch` and `batch_tokens` the group's prompts and all tokens that it emitted; `commits`
    are the prompt's own, from the group's start; `references` are seconds of a plain step, sampled before, between and
    after the group's rounds. `peak_bytes`: the most memory that the process had in use meanwhile; null where the system
    does not tell.
    """
    decoding.check_batch(decoder, batch)
    groups = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
    water = HighWater(target.device)
    outputs, timings = [], []
    with alone():
        warm_up(decoder, [prompt.ids for prompt in groups[0]], max_new_tokens)
        reference = Reference(target)
        for repeat in range(repeats):
            for group in groups:
                if water.told:
                    water.reset()
                traces, clock = timed(target, decoder, reference, [p.ids for p in group], max_new_tokens, processors)
                peak = water.peak() if water.told else None
                seconds = max(trace.seconds for trace in traces)
                tokens = sum(len(trace.output) for trace in traces)
                for prompt, trace in zip(group, traces, strict=True):
                    key = {"prompt_id": prompt.prompt_id, "repeat": repeat}
                    outputs.append({**key, **output_record(prompt, trace)})
                    timings.append(
                        {
                            **key,
                            "batch": len(group),
                            "batch_tokens": tokens,
                            "seconds": seconds,
                            "commits": trace.commits,
                            "references": clock.samples,
                            "peak_bytes": peak,
                        }
                    )
                names = ", ".join(prompt.prompt_id for prompt in group)
                print(f"generate: {names}: {tokens} tokens, {tokens / seconds:.1f} tokens/s", file=sys.stderr)
    return outputs, timings


def timed(
    target: LanguageModel,
    decoder: Any,
    reference: Reference,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    processors: Processors = PLAIN,
) -> tuple[list[Trace], PacedClock]:
    """The traces of `prompts`, several of them decoded together, and their clock with its samples of `reference`."""
    synchronise(target.device)
    clock = PacedClock(reference)
    traces = decode_all(decoder, prompts, max_new_tokens, clock=clock, processors=processors)
    synchronise(target.device)
    clock.sample()
    return traces, clock


def decode_all(decoder: Any, prompts: Sequence[list[int]], max_new_tokens: int, **options: Any) -> list[Trace]:
    """The traces of `prompts`, several of them decoded together."""
    if len(prompts) == 1:
        return [decoder.decode(prompts[0], max_new_tokens, **options)]
    traces: list[Trace] = decoder.decode_batch(prompts, max_new_tokens, **options)
    return traces


def warm_up(decoder: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> None:
    """A short generation that is not recorded."""
    decode_all(decoder, prompts, min(WARM_UP_TOKENS, max_new_tokens))


def output_record(prompt: Prompt, trace: Trace) -> dict[str, Any]:
    """What is the same however fast the machine is."""
    return {
        "document_id": prompt.document_id,
        "prompt_tokens": len(prompt.ids),
        "output_ids": trace.output,
        "first": trace.first,
        "target_forwards": trace.target_forwards,
        "draft_forwards": trace.draft_forwards,
        "rounds": [asdict(round_) for round_ in trace.rounds],
    }
