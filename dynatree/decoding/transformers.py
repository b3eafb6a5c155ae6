"""transformers' own `generate`: the autoregressive decoding that users have."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from dynatree.config import Knobs
from dynatree.costs.calibration import Calibration
from dynatree.decoding import Needs, TargetAlone
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.generation import hf_generate
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, OnCommit, Trace


class Settings(Knobs):
    """`forward`: the target's, as all methods have it; "torch": the model's own, as users who load it have it."""

    forward: Literal["target", "torch"] = "target"  # whose forward: ours of the target, or the model's own


class Decoder(TargetAlone):
    """`generate`."""

    Settings = Settings
    shared_noise: ClassVar[bool] = False

    def __init__(
        self,
        target: LanguageModel,
        drafter: DraftModel | None = None,
        calibration: Calibration | None = None,
        **knobs: Any,
    ):
        super().__init__(target, drafter, calibration, **knobs)
        # By torch it rounds in another order, and in few bits it is another model.
        self.audited = self._knobs.forward == "target"

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
        return hf_generate.generate(self._target, prompt, options, on_commit, clock, as_loaded=not self.audited)
