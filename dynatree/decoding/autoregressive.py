"""Plain greedy decoding, one token a forward: the reference that every other decoder must equal and beat."""

from typing import Any

import torch

from dynatree.cache import KeyValueCache
from dynatree.calibration import Calibration
from dynatree.decoding import Needs, NoKnobs
from dynatree.model import LanguageModel
from dynatree.processors import PLAIN, Processors
from dynatree.trace import Clock, OnCommit, Recorder, Trace
from dynatree.verification.greedy import greedy_tokens


class Decoder:
    """Our own autoregressive loop on our own cache."""

    @staticmethod
    def check(knobs: dict[str, Any]) -> None:
        NoKnobs(**knobs)

    @staticmethod
    def needs(knobs: dict[str, Any]) -> Needs:
        return Needs()

    def __init__(
        self,
        target: LanguageModel,
        drafter: LanguageModel | None = None,
        calibration: Calibration | None = None,
        **knobs: Any,
    ):
        self.check(knobs)
        self._target = target

    def decode(
        self,
        prompt: list[int],
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
        processors: Processors = PLAIN,
    ) -> Trace:
        """Up to `max_new_tokens` tokens after `prompt`; ends behind the first token of `eos_ids`."""
        target = self._target
        target.check_prompt(prompt, max_new_tokens)
        forwards = target.forwards
        recorder = Recorder(eos_ids, on_commit, clock)
        cache = KeyValueCache()
        with recorder.clock.phase("prefill"):
            logits = target.forward(torch.tensor(prompt), cache, last_only=True)
            token = greedy_tokens(processors.process(logits, prompt))
        recorder.first(token.tolist())
        while not recorder.finished and len(recorder.trace.output) < max_new_tokens:
            with recorder.clock.phase("verify"):
                logits = target.forward(token, cache)
                token = greedy_tokens(processors.process(logits, [*prompt, *recorder.trace.output]))
            recorder.round(token.tolist(), accepted=0, drafted=0, depth=0, draft_forwards=0)
        return recorder.close(target.forwards - forwards, draft_forwards=0)
