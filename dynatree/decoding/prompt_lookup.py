"""transformers' prompt lookup (Saxena 2023): the drafter is the text so far."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from dynatree.config import Knobs
from dynatree.decoding import Needs, TargetAlone
from dynatree.generation import hf_generate
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, OnCommit, Trace


class Settings(Knobs):
    """transformers' names: prompt_lookup_num_tokens, max_matching_ngram_size."""

    draft_tokens: int = Field(ge=1, default=10)  # most tokens proposed a round
    max_ngram: int = Field(ge=1, default=2)  # longest match that is looked for


class Decoder(TargetAlone):
    """`generate(prompt_lookup_num_tokens=...)`."""

    Settings = Settings
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
        """As `autoregressive`, by transformers with n-gram lookup."""
        # transformers looks up past the last wanted token, and learned positions end with the context.
        overshoot = max(0, self._knobs.draft_tokens - 2)
        self._target.check_prompt(prompt, options.max_new_tokens, overshoot)
        lookup = {
            "prompt_lookup_num_tokens": self._knobs.draft_tokens,
            "max_matching_ngram_size": self._knobs.max_ngram,
        }
        return hf_generate.generate(self._target, prompt, options, on_commit, clock, lookup)
