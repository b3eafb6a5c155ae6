"""transformers' own greedy `generate`: the plain decoding that users have."""

from typing import Any

from dynatree import baseline
from dynatree.calibration import Calibration
from dynatree.decoding import Needs, NoKnobs
from dynatree.model import LanguageModel
from dynatree.processors import PLAIN, Processors
from dynatree.trace import Clock, OnCommit, Trace


class Decoder:
    """`generate(do_sample=False)`."""

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
        """As `autoregressive`, by transformers."""
        return baseline.generate(
            self._target, None, prompt, max_new_tokens, eos_ids, on_commit, clock, **processors.generation_options
        )
