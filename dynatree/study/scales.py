"""The part of params.yaml below `scales`: how much of everything, and what a scale has of its own. Imports no torch."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from dynatree.config import Knobs

DataType = Literal["float32", "float64", "bfloat16", "float16", "int8", "int4"]
Device = Literal["cpu", "cuda"]


def once(values: list[Any]) -> list[Any]:
    """The values, or ValueError for one that stands there twice."""
    if twins := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(twins)} stands there twice")
    return values


def from_one(values: list[int]) -> list[int]:
    """The values, or ValueError for one below 1."""
    if values and min(values) < 1:
        raise ValueError(f"{min(values)}; give numbers from 1")
    return values


class Calibration(Knobs):
    """Tuning prompts a data set and tokens of their continuations; contexts to time after, forwards of each size."""

    prompts: int = Field(ge=1)  # tuning prompts a data set
    output_tokens: int = Field(ge=2)  # decoded after each
    contexts: list[int] = Field(min_length=1)  # forwards are timed after so many tokens
    repeats: int = Field(ge=1)  # forwards timed of each size

    @field_validator("contexts")
    @classmethod
    def _ascending(cls, contexts: list[int]) -> list[int]:
        if contexts != sorted(set(contexts)) or contexts[0] < 1:
            raise ValueError("expected ascending numbers of tokens, 1 or more")
        return contexts


class Size(Knobs):
    """Of an experiment: prompts a data set and tokens of their outputs; `settings`, `prompt_tokens`: further ones."""

    prompts: int = Field(ge=1)  # a data set
    output_tokens: int = Field(ge=2)  # decoded after each prompt
    settings: dict[str, list[str]] = Field(default_factory=dict)  # by method: further settings beside the experiment's
    prompt_tokens: list[int] = Field(default_factory=list)  # further lengths of prompts beside the experiment's

    @field_validator("prompt_tokens")
    @classmethod
    def _lengths(cls, values: list[int]) -> list[int]:
        return from_one(once(values))


class BenchmarkSize(Knobs):
    """Prompts a data set and tokens of their outputs; the same for tuning."""

    prompts: int = Field(ge=1)  # a data set, of each kind of text
    output_tokens: int = Field(ge=2)  # decoded after each prompt
    repeats: int = Field(default=5, ge=1)  # of the slowest prompt of each method under `repeated`
    tuning_prompts: int = Field(ge=1)  # a data set, by which `grids` are decided
    tuning_output_tokens: int = Field(ge=2)  # decoded after each of those


class Instead(Knobs):
    """What a scale takes in place of the keys of these names; `datasets` one for one, also in the experiments."""

    pair: str | None = None  # in place of `pair`
    datasets: list[str] | None = None  # in place of `datasets`, one for one
    dtype: DataType | None = None  # in place of `dtype`
    device: Device | None = None  # in place of `device`


class Scale(Knobs):
    """How much of everything; lengths in tokens."""

    prompts: int = Field(ge=1)  # a data set, of the main runs
    prompt_tokens: int = Field(ge=1)  # of each prompt
    output_tokens: int = Field(ge=2)  # decoded after it
    repeats: int = Field(ge=1)  # of every prompt
    experiments: dict[str, Size]  # sizes of experiments; `default` for those not named
    timeline_tokens: int = Field(ge=2)  # of the passes that time phases
    perplexity_tokens: int = Field(ge=2)  # of a data set's evaluation split, at most
    perplexity_window: int = Field(ge=2)  # tokens of one forward
    perplexity_stride: int = Field(ge=1)  # tokens from window to window
    drafter_report_tokens: int = Field(ge=1)  # of each evaluation split, at most
    calibration: Calibration  # of costs and step probabilities
    benchmark: BenchmarkSize  # of `make benchmark`
    instead: Instead = Field(default_factory=Instead)  # of keys that this scale is for
    leaves_out: list[str] = Field(default_factory=list)  # experiments, whose figures go with them, and further figures

    def of(self, experiment: str) -> Size:
        """The size of an experiment."""
        return self.experiments.get(experiment, self.experiments["default"])

    @field_validator("leaves_out")
    @classmethod
    def _each_once(cls, titles: list[str]) -> list[str]:
        return once(titles)

    @field_validator("experiments")
    @classmethod
    def _complete(cls, experiments: dict[str, Size]) -> dict[str, Size]:
        if "default" not in experiments:
            raise ValueError(f"no 'default', the size of those not named; got {', '.join(experiments) or 'nothing'}")
        return experiments

    @model_validator(mode="after")
    def _overlapping(self) -> Self:
        if self.perplexity_stride >= self.perplexity_window:
            raise ValueError(
                f"perplexity_stride {self.perplexity_stride}: choose less than the window, {self.perplexity_window}"
            )
        return self
