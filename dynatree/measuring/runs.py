"""Run one method over prompts and record what happened: deterministic outputs apart from timings.

How its seconds are compared with others': clock.py.
"""

import sys
from collections.abc import Sequence
from typing import Any

from dynatree.data.prompts import Prompt
from dynatree.decoding import Decoder, decode_together
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Trace
from dynatree.measuring.clock import PacedClock, StepSampler, alone, synchronise
from dynatree.measuring.watermark import HighWater

WARM_UP_TOKENS = 16


def generate(
    target: LanguageModel,
    decoder: Decoder,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    repeats: int = 1,
    batch: int = 1,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(outputs, timings), one of each per prompt and repeat, in equal order.

    Groups of `batch` prompts are decoded together, in order; the last group may be smaller. `seconds` of a timing are
    those of its whole group, `batch` and `batch_tokens` the group's prompts and all tokens that it emitted; `commits`
    are the prompt's own, from the group's start; `references` are seconds of an autoregressive step, sampled
    before, between and after the group's rounds. `peak_bytes`: the most memory that the process had in use meanwhile;
    null where the system does not tell. Where tokens are drawn, each prompt has its place as request key.
    Raises UserError for a batch where `decoder` takes one prompt at a time, RuntimeError for an output that is not of
    the length that was asked for: it would be left out of all comparisons.
    """
    starts = range(0, len(prompts), batch)
    groups = [(prompts[start : start + batch], options.keyed(range(start, start + batch))) for start in starts]
    water = HighWater(target.device)
    outputs, timings = [], []
    with alone():
        warm_up(decoder, [prompt.ids for prompt in groups[0][0]], options.keyed(range(batch)))
        sampler = StepSampler(target)
        for repeat in range(repeats):
            for group, asked in groups:
                if water.told:
                    water.reset()
                traces, clock = timed(decoder, sampler, [prompt.ids for prompt in group], asked)
                peak = water.peak() if water.told else None
                seconds = max(trace.seconds for trace in traces)
                tokens = sum(len(trace.output) for trace in traces)
                for prompt, trace in zip(group, traces, strict=True):
                    _check_length(prompt, trace, options)
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


def _check_length(prompt: Prompt, trace: Trace, options: GenerationOptions) -> None:
    """Raise RuntimeError for an output that ended early, though nothing was given that ends it."""
    came, asked = len(trace.output), options.max_new_tokens
    if came != asked and not options.eos_token_id and not options.stopping_criteria:
        raise RuntimeError(f"{prompt.prompt_id}: {came} tokens came, and {asked} were asked for")


def timed(
    decoder: Decoder, sampler: StepSampler, prompts: Sequence[list[int]], options: GenerationOptions
) -> tuple[list[Trace], PacedClock]:
    """The traces of `prompts`, several of them decoded together, and their clock with its samples of `sampler`."""
    synchronise(sampler.device)
    clock = PacedClock(sampler)
    traces = decode_together(decoder, prompts, options, clock)
    synchronise(sampler.device)
    clock.sample()
    return traces, clock


def warm_up(decoder: Decoder, prompts: Sequence[list[int]], options: GenerationOptions) -> None:
    """A short generation that is not recorded."""
    short = min(WARM_UP_TOKENS, options.max_new_tokens)
    decode_together(decoder, prompts, options.model_copy(update={"max_new_tokens": short}))


def output_record(prompt: Prompt, trace: Trace) -> dict[str, Any]:
    """What is the same however fast the machine is."""
    return {
        "document_id": prompt.document_id,
        "prompt_tokens": len(prompt.ids),
        "output_ids": trace.output,
        "first": trace.first,
        "target_forwards": trace.target_forwards,
        "draft_forwards": trace.draft_forwards,
        "rounds": [round_._asdict() for round_ in trace.rounds],
    }
