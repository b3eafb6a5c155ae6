"""transformers' prompt lookup (Saxena 2023): the drafter is the text so far."""

from pydantic import Field

from dynatree.config import Knobs
from dynatree.decoding import TargetAlone
from dynatree.generation import hf_generate
from dynatree.generation.logits_processors import PLAIN, Processors
from dynatree.generation.trace import Clock, OnCommit, Trace


class Settings(Knobs):
    """transformers' names: prompt_lookup_num_tokens, max_matching_ngram_size."""

    draft_tokens: int = Field(ge=1, default=10)
    max_ngram: int = Field(ge=1, default=2)


class Decoder(TargetAlone):
    """`generate(prompt_lookup_num_tokens=...)`."""

    Settings = Settings

    def decode(
        self,
        prompt: list[int],
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
        processors: Processors = PLAIN,
    ) -> Trace:
        """As `autoregressive`, by transformers with n-gram lookup."""
        # transformers looks up past the last wanted token, and learned positions end with the context.
        self._target.check_prompt(prompt, max_new_tokens, overshoot=max(0, self._knobs.draft_tokens - 2))
        return hf_generate.generate(
            self._target,
            None,
            prompt,
            max_new_tokens,
            eos_ids,
            on_commit,
            clock,
            prompt_lookup_num_tokens=self._knobs.draft_tokens,
            max_matching_ngram_size=self._knobs.max_ngram,
            **processors.generation_options,
        )
