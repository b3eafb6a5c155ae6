"""transformers' assisted generation with the same drafter (Gante 2023; Leviathan et al. 2023, 2211.17192)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from dynatree.config import Knobs
from dynatree.costs.calibration import Calibration
from dynatree.decoding import Needs
from dynatree.engine.compatibility import pair_up
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation import hf_generate
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, OnCommit, Trace


class Settings(Knobs):
    """transformers' names: num_assistant_tokens, num_assistant_tokens_schedule, assistant_confidence_threshold."""

    draft_tokens: int = Field(ge=1, default=20)  # most tokens drafted a round
    schedule: Literal["constant", "heuristic", "heuristic_transient"] = "constant"  # whether that number adapts
    confidence: float = Field(ge=0, lt=1, default=0.4)  # drafting stops below this probability


class Decoder:
    """`generate(assistant_model=...)`. Its first commit already holds drafted tokens: it drafts before prefill."""

    shared_noise: ClassVar[bool] = False
    audited: ClassVar[bool] = True

    @staticmethod
    def check(knobs: Mapping[str, Any]) -> None:
        Settings(**knobs)

    @staticmethod
    def needs(knobs: Mapping[str, Any]) -> Needs:
        return Needs("required")

    def __init__(
        self,
        target: LanguageModel,
        drafter: DraftModel,
        calibration: Calibration | None = None,
        **knobs: Any,
    ):
        checked = Settings(**knobs)
        pair_up(target, drafter)
        if drafter.reads:
            raise UserError(
                f"drafter {drafter.name} reads its target's states, which transformers' assisted generation does not "
                "give; take a drafter without draft_reads, or a method of ours"
            )
        self._target, self._drafter = target, drafter.language_model
        self._assistant_options = {
            "num_assistant_tokens": checked.draft_tokens,
            "num_assistant_tokens_schedule": checked.schedule,
            "assistant_confidence_threshold": checked.confidence,
        }

    def decode(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
    ) -> Trace:
        """As `autoregressive`, by transformers with an assistant, which must have room for the whole sequence."""
        self._drafter.check_prompt(prompt, options.max_new_tokens)
        assistant = hf_generate.Assistant(self._drafter, self._assistant_options)
        return hf_generate.generate(self._target, prompt, options, on_commit, clock, assistant=assistant)
