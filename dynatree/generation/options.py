"""What is asked of a generation, whichever decoder runs it. Knows no decoder and no model."""

from functools import cached_property

from pydantic import Field

from dynatree.config import Knobs
from dynatree.generation.logits_processors import LogitsProcessors, NGramSize, RepetitionPenalty


class GenerationOptions(Knobs):
    """Names and meanings are those of transformers' GenerationConfig.

    `eos_token_id`: token ids that end an output, behind the first of them; none: it ends at `max_new_tokens`.
    """

    max_new_tokens: int = Field(ge=1)
    eos_token_id: frozenset[int] = frozenset()
    repetition_penalty: RepetitionPenalty = 1.0
    no_repeat_ngram_size: NGramSize = 0

    @cached_property
    def processors(self) -> LogitsProcessors:
        """The logits processors among them."""
        return LogitsProcessors(
            repetition_penalty=self.repetition_penalty, no_repeat_ngram_size=self.no_repeat_ngram_size
        )
