"""The clock of a timed request, the autoregressive steps that it is compared by, and the lock that timed jobs hold.

Autoregressive steps are timed between a request's rounds, its clock stopped: timings on shared machines drift, and what
was timed at different moments is compared by what such a step took meanwhile.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch

from dynatree.engine.language_model import LanguageModel
from dynatree.generation.logits_processors import greedy_tokens
from dynatree.generation.trace import Clock
from dynatree.measuring import pacing

CONTEXT = 64


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


class StepSampler:
    """Autoregressive steps of `target` at a fixed context, apart from any request's cache and counts."""

    def __init__(self, target: LanguageModel):
        self._target, self._cache, self.device = target, target.new_caches(1)[0], target.device
        self._context = min(CONTEXT, (target.context_limit or CONTEXT + 1) - 1)
        prompt = torch.arange(self._context) % target.vocabulary_size
        with torch.inference_mode():
            self._token = greedy_tokens(target.forward(prompt, self._cache, last=1))

    @torch.inference_mode()
    def sample(self) -> float:
        """Median seconds of a few steps."""
        # With torch's threads as within a request: more of them make a step longer, and requests shorter in steps.
        with self._target.threads(), self._target.uncounted():
            edges = [self._step() for _ in range(pacing.SAMPLE_STEPS)]
        seconds = sorted(end - begin for begin, end in pairwise(edges))
        return seconds[len(seconds) // 2]

    def _step(self) -> float:
        self._cache.crop(self._context)
        greedy_tokens(self._target.forward(self._token, self._cache))
        return time.perf_counter()


class PacedClock(Clock):
    """A request's clock that stops after a commit, every so often, for a sample of `sampler`."""

    def __init__(self, sampler: StepSampler, instrumented: bool = False):
        super().__init__(instrumented)
        self._sampler, self._stopped = sampler, 0.0
        self.samples = [sampler.sample()]
        self._next_sample = pacing.pause(self.samples[-1])
        self.start = time.perf_counter()

    def now(self) -> float:
        return super().now() - self._stopped

    def after_commit(self) -> None:
        if self.now() >= self._next_sample:
            self.sample()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with super().phase(name):
            yield
            if self.instrumented:
                # What was only sent to the device is no part of the next phase.
                synchronise(self._sampler.device)

    def sample(self) -> None:
        """Take a sample now, outside of the request's time."""
        begin, self.stopped = time.perf_counter(), True
        self.samples.append(self._sampler.sample())
        self.stopped = False
        self._stopped += time.perf_counter() - begin
        self._next_sample = self.now() + pacing.pause(self.samples[-1])
