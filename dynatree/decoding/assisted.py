"""transformers' assisted generation with the same drafter (Gante 2023; Leviathan et al. 2023, 2211.17192)."""

from typing import Any, Literal

from pydantic import Field

from dynatree.config import Knobs
from dynatree.costs.calibration import Calibration
from dynatree.decoding import Needs
from dynatree.engine.language_model import LanguageModel, check_pair
from dynatree.generation import hf_generate
from dynatree.generation.logits_processors import PLAIN, Processors
from dynatree.generation.trace import Clock, OnCommit, Trace


class Settings(Knobs):
    """transformers' names: num_assistant_tokens, num_assistant_tokens_schedule, assistant_confidence_threshold."""

    draft_tokens: int = Field(ge=1, default=20)
    schedule: Literal["constant", "heuristic", "heuristic_transient"] = "constant"
    confidence: float = Field(ge=0, lt=1, default=0.4)


class Decoder:
    """`generate(assistant_model=...)`. Its first commit already holds drafted tokens: it drafts before prefill."""

    @staticmethod
    def check(knobs: dict[str, Any]) -> None:
        Settings(**knobs)

    @staticmethod
    def needs(knobs: dict[str, Any]) -> Needs:
        return Needs("required")

    def __init__(
        self,
        target: LanguageModel,
        drafter: LanguageModel,
        calibration: Calibration | None = None,
        **knobs: Any,
    ):
        checked = Settings(**knobs)
        check_pair(target, drafter)
        self._target, self._drafter = target, drafter
        self._options = {
            "num_assistant_tokens": checked.draft_tokens,
            "num_assistant_tokens_schedule": checked.schedule,
            "assistant_confidence_threshold": checked.confidence,
        }

    def decode(
        self,
        prompt: list[int],
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
        processors: Processors = PLAIN,
    ) -> Trace:
        """As `autoregressive`, by transformers with an assistant, which must have room for the whole sequence."""
        self._drafter.check_prompt(prompt, max_new_tokens)
        return hf_generate.generate(
            self._target,
            self._drafter,
            prompt,
            max_new_tokens,
            eos_ids,
            on_commit,
            clock,
            self._options,
            **processors.generation_options,
        )
