"""transformers' own `generate`: the autoregressive decoding that users have."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dynatree.decoding import Needs, TargetAlone
from dynatree.generation import hf_generate
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, OnCommit, Trace


class Decoder(TargetAlone):
    """`generate`."""

    shared_noise: ClassVar[bool] = False

    @staticmethod
    def needs(knobs: Mapping[str, Any]) -> Needs:
        return Needs()

    def decode(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
    ) -> Trace:
        """As `autoregressive`, by transformers."""
        return hf_generate.generate(self._target, prompt, options, on_commit, clock)
