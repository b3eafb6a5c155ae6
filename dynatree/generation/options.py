"""What is asked of a generation, whichever decoder runs it. Knows no decoder and no model."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from dynatree.config import Knobs
from dynatree.generation.logits_processors import LogitsProcessors, NGramSize, Processor, RepetitionPenalty
from dynatree.generation.sampling import MinP, Sampler, Seed, TopK, TopP, Warpers

# transformers' contract: (token ids [1, length], scores or None) -> whether to stop, a tensor [1] or a bool.
StoppingCriterion = Callable[[Tensor, Any], Any]

# Below it scores that are divided by it overflow.
_LEAST_TEMPERATURE = 1e-3
# Options that change nothing where decoding is greedy.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "request_key")


class GenerationOptions(Knobs):
    """Names and meanings are those of transformers' GenerationConfig and `generate`.

    `eos_token_id`: token ids that end an output, after the first of them; none: it ends at `max_new_tokens`.
    `logits_processor`: applied after the two that have names of their own. `stopping_criteria`: asked after every
    token, also within a commit, with the text so far and no scores. `do_sample`: draw from the distribution that
    `temperature` (0: greedy after all), `top_k` (0: all), `top_p` and `min_p` leave, by the noise of `seed` and
    `request_key` (sampling.py), of which several prompts have one each, or the same. (`generate` of transformers takes
    the best 50 unless told otherwise; here nothing is left out that is not asked for.)
    """

    max_new_tokens: int = Field(ge=1)
    eos_token_id: frozenset[int] = frozenset()
    repetition_penalty: RepetitionPenalty = 1.0
    no_repeat_ngram_size: NGramSize = 0
    logits_processor: tuple[Processor, ...] = ()
    stopping_criteria: tuple[StoppingCriterion, ...] = ()
    do_sample: bool = False
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    seed: Seed = 0
    request_key: Seed | tuple[Seed, ...] = 0

    @field_validator("eos_token_id", mode="before")
    @classmethod
    def _one_or_several(cls, ids: Any) -> Any:
        return () if ids is None else (ids,) if isinstance(ids, int) else ids

    @field_validator("logits_processor", "stopping_criteria", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return () if given is None else tuple(given) if isinstance(given, Iterable) else given

    @field_validator("do_sample", "temperature", "top_k", "top_p", "min_p", "seed", "request_key", mode="before")
    @classmethod
    def _unset(cls, value: Any, info: ValidationInfo) -> Any:
        # transformers' configurations say None for what is not asked for.
        return cls.model_fields[str(info.field_name)].default if value is None else value

    @model_validator(mode="after")
    def _sampling_is_asked_for(self) -> Self:
        fields = type(self).model_fields
        given = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) != fields[name].default}
        if given.get("temperature") == 0:
            del given["temperature"]
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            raise ValueError(f"temperature {self.temperature}: give {_LEAST_TEMPERATURE} or more, or 0 for greedy")
        if given and not self.do_sample:
            name, value = next(iter(given.items()))
            raise ValueError(f"{name} {value} is for sampling, and decoding is greedy; add do_sample=True")
        return self

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn, and not the likeliest taken."""
        return self.do_sample and self.temperature > 0

    def sampler(self, place: int = 0) -> Sampler | None:
        """What draws the tokens of the prompt at `place` in the list; None: decoding is greedy."""
        if not self.sampled:
            return None
        warpers = Warpers(**{name: getattr(self, name) for name in Warpers.model_fields})
        return Sampler(warpers, self.seed, self.key(place))

    @property
    def sampling_options(self) -> dict[str, Any]:
        """What transformers' `generate` is told of sampling, all of it: its own defaults differ."""
        if not self.sampled:
            return {"do_sample": False}
        # A `min_p` of 0 would cost a softmax a step there.
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p or None,
        }

    def torch_seed(self) -> int | None:
        """A seed for torch's generator, another of every seed and request key; None: decoding is greedy."""
        if not self.sampled:
            return None
        spread = np.random.SeedSequence(self.seed, spawn_key=(self.key(0),))
        return int(spread.generate_state(1, np.uint64)[0] >> 1)

    def keyed(self, keys: Sequence[int]) -> "GenerationOptions":
        """The same for prompts with these request keys."""
        return self.model_copy(update={"request_key": tuple(keys)}) if self.sampled else self

    def key(self, place: int) -> int:
        """The request key of the prompt at `place` in the list."""
        return self.request_key if isinstance(self.request_key, int) else self.request_key[place]

    @cached_property
    def processors(self) -> LogitsProcessors:
        """The logits processors among them."""
        return LogitsProcessors(
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            further=self.logits_processor,
        )


# Of a kind of text that says nothing: the likeliest token.
GREEDY = GenerationOptions(max_new_tokens=1)
