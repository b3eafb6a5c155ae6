"""Run one method over prompts and record what happened: deterministic outputs apart from timings.

A reference of plain target steps brackets each prompt, so that jobs timed at different moments can be compared.
"""

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dynatree import loading, plugins, provenance
from dynatree.cache import KeyValueCache
from dynatree.calibration import Calibration
from dynatree.errors import UserError, readable
from dynatree.model import LanguageModel
from dynatree.processors import PLAIN, Processors
from dynatree.text.prompts import Prompt
from dynatree.trace import Clock, Trace
from dynatree.verification.greedy import greedy_tokens
from dynatree.watermark import HighWater

WARM_UP_TOKENS = 16
REFERENCE_CONTEXT = 64


def lock_path() -> Path:
    """The file whose lock a timed job holds."""
    return Path(tempfile.gettempdir()) / f"dynatree-timing-{os.getuid()}.lock"


@contextmanager
def alone() -> Iterator[None]:
    """Hold this user's timing lock: two timed jobs never overlap, whichever tool started them."""
    with lock_path().open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def synchronise(device: torch.device) -> None:
    """Wait for the device, at request boundaries only."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reference_step(target: LanguageModel, seconds: float) -> float:
    """Median seconds of a plain target step at a fixed context, over at least `seconds` of such steps."""
    context = min(REFERENCE_CONTEXT, (target.context_limit or REFERENCE_CONTEXT + 1) - 1)
    cache = KeyValueCache()
    token = greedy_tokens(target.forward(torch.arange(context) % target.vocabulary_size, cache, last_only=True))
    steps: list[float] = []
    begin = time.perf_counter()
    while not steps or time.perf_counter() - begin < seconds:
        cache.crop(context)
        start = time.perf_counter()
        greedy_tokens(target.forward(token, cache))
        steps.append(time.perf_counter() - start)
    return sorted(steps)[len(steps) // 2]


def build(
    target: LanguageModel,
    drafter: LanguageModel | None,
    decoder: str,
    knobs: dict[str, Any],
    calibration: Calibration | None = None,
) -> Any:
    """The decoder plug-in `decoder` on these models, with the calibration that was measured for them.

    Raises UserError for knobs that it does not take, and where it needs a drafter and there is none.
    """
    built = plugins.load("decoding", decoder).Decoder
    with readable(f"the parameters of decoder {decoder}"):
        built.check(knobs)
    if drafter is None and built.needs(knobs).drafter == "required":
        raise UserError(f"decoder {decoder} with these parameters needs a drafter, and none is given: {knobs}")
    return built(target, drafter, calibration, **knobs)


def load_all(
    folders: dict[str, Path], calibration: Path | None, decoder: str, knobs: dict[str, Any], dtype: str, device: str
) -> tuple[dict[str, LanguageModel], Any]:
    """(models, decoder) from the model `folders` of `target` and, if there is one, `drafter`.

    `calibration` is the folder of what was measured for them. Raises UserError if anything does not fit.
    """
    loaded = loading.load_pair(folders, dtype, device)
    measured = None
    if calibration:
        fingerprints = {role: loading.fingerprint(folder) for role, folder in folders.items()}
        measured = Calibration.read(calibration, fingerprints, provenance.describe(dtype, device))
    return loaded, build(loaded["target"], loaded.get("drafter"), decoder, knobs, measured)


def load(
    folders: dict[str, Path], calibration: Path | None, decoder: str, knobs: dict[str, Any], dtype: str, device: str
) -> tuple[LanguageModel, Any]:
    """(target, decoder): `load_all` for those who need not look at the drafter."""
    models, built = load_all(folders, calibration, decoder, knobs, dtype, device)
    return models["target"], built


def generate(
    target: LanguageModel,
    decoder: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    repeats: int,
    reference_seconds: float,
    processors: Processors = PLAIN,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(outputs, timings), one of each a prompt and repeat, in equal order. EOS is disabled for every method alike."""
    return generate_batches(target, decoder, prompts, 1, max_new_tokens, repeats, reference_seconds, processors)


def generate_batches(
    target: LanguageModel,
    decoder: Any,
    prompts: Sequence[Prompt],
    batch: int,
    max_new_tokens: int,
    repeats: int,
    reference_seconds: float,
    processors: Processors = PLAIN,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """As `generate`, for groups of `batch` prompts decoded together, in order; the last group may be smaller.

    `seconds` of a timing are those of its whole group, `batch` and `batch_tokens` the group's prompts and all tokens
    that it emitted; `commits` are the prompt's own, from the group's start. `peak_bytes`: the most memory that the
    process had in use meanwhile; null where the system does not tell.
    """
    check_batch(decoder, batch)
    groups = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
    water = HighWater(target.device)
    outputs, timings = [], []
    with alone():
        decode_all(decoder, [prompt.ids for prompt in groups[0]], min(WARM_UP_TOKENS, max_new_tokens))
        before = reference_step(target, reference_seconds)
        for repeat in range(repeats):
            for group in groups:
                if water.told:
                    water.reset()
                synchronise(target.device)
                traces = decode_all(decoder, [p.ids for p in group], max_new_tokens, processors=processors)
                synchronise(target.device)
                peak = water.peak() if water.told else None
                after = reference_step(target, reference_seconds)
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
                            "reference_before": before,
                            "reference_after": after,
                            "peak_bytes": peak,
                        }
                    )
                before = after
                names = ", ".join(prompt.prompt_id for prompt in group)
                print(f"generate: {names}: {tokens} tokens, {tokens / seconds:.1f} tokens/s", file=sys.stderr)
    return outputs, timings


def check_batch(decoder: Any, batch: int) -> None:
    """Raise UserError unless `decoder` (a decoder plug-in's class or object) can decode `batch` prompts together."""
    if batch > 1 and not hasattr(decoder, "decode_batch"):
        name = (decoder if isinstance(decoder, type) else type(decoder)).__module__.rpartition(".")[2]
        able = [n for n in plugins.names("decoding") if hasattr(plugins.load("decoding", n).Decoder, "decode_batch")]
        raise UserError(f"batch: {batch}; {name} decodes one prompt at a time, batches are for {', '.join(able)}")


def decode_all(decoder: Any, prompts: Sequence[list[int]], max_new_tokens: int, **options: Any) -> list[Trace]:
    """The traces of `prompts`, several of them decoded together."""
    if len(prompts) == 1:
        return [decoder.decode(prompts[0], max_new_tokens, **options)]
    traces: list[Trace] = decoder.decode_batch(prompts, max_new_tokens, **options)
    return traces


def warm_up(decoder: Any, prompt: list[int], max_new_tokens: int) -> None:
    """A short generation that is not recorded."""
    decoder.decode(prompt, min(WARM_UP_TOKENS, max_new_tokens))


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


def phases(target: LanguageModel, decoder: Any, prompt: Prompt, max_new_tokens: int) -> dict[str, Any]:
    """One instrumented generation: output record and the span of each phase, in seconds since the start."""
    with alone():
        warm_up(decoder, prompt.ids, max_new_tokens)
        trace = decoder.decode(prompt.ids, max_new_tokens, clock=Clock(instrumented=True))
    return {"prompt_id": prompt.prompt_id, **output_record(prompt, trace), "spans": trace.spans}
