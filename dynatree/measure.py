"""Run one method over prompts and record what happened: deterministic outputs apart from timings.

Plain target steps are timed between a request's rounds, its clock stopped: machines that others share have faster and
slower seconds, and what was timed at different moments is compared by what a plain step took meanwhile.
"""

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
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
from dynatree.trace import REFERENCE_EVERY, REFERENCE_REST, REFERENCE_STEPS, Clock, Trace
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


class Reference:
    """Plain steps of `target` at a fixed context, apart from any request's cache and counts."""

    def __init__(self, target: LanguageModel):
        self._target, self._cache, self.device = target, KeyValueCache(), target.device
        self._context = min(REFERENCE_CONTEXT, (target.context_limit or REFERENCE_CONTEXT + 1) - 1)
        prompt = torch.arange(self._context) % target.vocabulary_size
        with torch.inference_mode():
            self._token = greedy_tokens(target.forward(prompt, self._cache, last_only=True))

    @torch.inference_mode()
    def sample(self) -> float:
        """Median seconds of a few steps."""
        with self._target.uncounted():
            edges = [self._step() for _ in range(REFERENCE_STEPS)]
        seconds = sorted(end - begin for begin, end in pairwise(edges))
        return seconds[len(seconds) // 2]

    def _step(self) -> float:
        self._cache.crop(self._context)
        greedy_tokens(self._target.forward(self._token, self._cache))
        return time.perf_counter()


class PacedClock(Clock):
    """A request's clock that stops behind a commit, every so often, to sample `reference`."""

    def __init__(self, reference: Reference, instrumented: bool = False):
        super().__init__(instrumented)
        self._reference, self._stopped = reference, 0.0
        self.samples = [reference.sample()]
        self._due = self._pause()
        self.start = time.perf_counter()

    def now(self) -> float:
        return super().now() - self._stopped

    def lull(self) -> None:
        if self.now() >= self._due:
            self.sample()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with super().phase(name):
            yield
            if self.instrumented:
                # What was only sent to the device is no part of the next phase.
                synchronise(self._reference.device)

    def sample(self) -> None:
        """Take a sample now, outside of the request's time."""
        begin, self.stopped = time.perf_counter(), True
        self.samples.append(self._reference.sample())
        self.stopped = False
        self._stopped += time.perf_counter() - begin
        self._due = self.now() + self._pause()

    def _pause(self) -> float:
        return max(REFERENCE_EVERY, REFERENCE_REST * REFERENCE_STEPS * self.samples[-1])


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
    check_batch(decoder, batch)
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
