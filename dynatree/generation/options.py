"""What is asked of a generation, whichever decoder runs it. Knows no decoder and no model."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from dynatree.config import Knobs
from dynatree.generation.logits_processors import LogitsProcessors, NGramSize, Processor, RepetitionPenalty

# transformers' contract: (token ids [1, length], scores or None) -> whether to stop, a tensor [1] or a bool.
StoppingCriterion = Callable[[Tensor, Any], Any]


class GenerationOptions(Knobs):
    """Names and meanings are those of transformers' GenerationConfig and `generate`.

    `eos_token_id`: token ids that end an output, after the first of them; none: it ends at `max_new_tokens`.
    `logits_processor`: applied after the two that have names of their own. `stopping_criteria`: asked after every
    token, also within a commit, with the text so far and no scores.
    """

    max_new_tokens: int = Field(ge=1)
    eos_token_id: frozenset[int] = frozenset()
    repetition_penalty: RepetitionPenalty = 1.0
    no_repeat_ngram_size: NGramSize = 0
    logits_processor: tuple[Processor, ...] = ()
    stopping_criteria: tuple[StoppingCriterion, ...] = ()

    @field_validator("eos_token_id", mode="before")
    @classmethod
    def _one_or_several(cls, ids: Any) -> Any:
        return () if ids is None else (ids,) if isinstance(ids, int) else ids

    @field_validator("logits_processor", "stopping_criteria", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return () if given is None else tuple(given) if isinstance(given, Iterable) else given

    @cached_property
    def processors(self) -> LogitsProcessors:
        """The logits processors among them."""
        return LogitsProcessors(
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            further=self.logits_processor,
        )
