"""Decoders: a prompt in, a Trace out.

A decoder is one file with a class `Decoder` of (target, drafter, calibration, **knobs):

    check(knobs)           raise ValueError (pydantic's) for knobs it does not take, before any loading
    needs(knobs) -> Needs  what must or may be given besides the target
    decode(prompt, max_new_tokens, eos_ids, on_commit, clock, processors) -> Trace
    decode_batch(prompts, max_new_tokens, eos_ids, clock, processors) -> list[Trace]
                           the same for each of several prompts, decoded together; left out where it cannot be
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch

from dynatree import plugins
from dynatree.config import Knobs
from dynatree.costs.calibration import Calibration
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError, readable
from dynatree.generation.logits_processors import PLAIN, Processors
from dynatree.generation.trace import Clock, OnCommit, Trace


class Needs(NamedTuple):
    """`drafter`: "unused", "optional" or "required"; `calibration`: whether one is made use of."""

    drafter: str = "unused"
    calibration: bool = False


class NoKnobs(Knobs):
    """For a decoder without knobs: refuses every key."""


class TargetAlone:
    """Base of a decoder that makes use of the target alone, with knobs of the class `Settings`."""

    Settings: ClassVar[type[Knobs]] = NoKnobs

    @classmethod
    def check(cls, knobs: dict[str, Any]) -> None:
        cls.Settings(**knobs)

    @staticmethod
    def needs(knobs: dict[str, Any]) -> Needs:
        return Needs()

    def __init__(
        self,
        target: LanguageModel,
        drafter: LanguageModel | None = None,
        calibration: Calibration | None = None,
        **knobs: Any,
    ):
        self._knobs: Any = self.Settings(**knobs)
        self._target = target


class Batched:
    """Base of a decoder whose loop is over several requests, of which one may be all."""

    def _decode(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        eos_ids: frozenset[int],
        on_commit: OnCommit | None,
        clock: Clock | None,
        processors: Processors,
    ) -> list[Trace]:
        raise NotImplementedError

    def decode(
        self,
        prompt: list[int],
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
        processors: Processors = PLAIN,
    ) -> Trace:
        """Up to `max_new_tokens` tokens after `prompt`, greedily; ends behind the first token of `eos_ids`.

        Raises UserError for a prompt that does not fit.
        """
        # Trees are many small tensors: without autograd's books each operation on them takes a tenth less.
        with torch.inference_mode():
            return self._decode([prompt], max_new_tokens, eos_ids, on_commit, clock, processors)[0]

    def decode_batch(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        clock: Clock | None = None,
        processors: Processors = PLAIN,
    ) -> list[Trace]:
        """Of each prompt the output that `decode` gives for it alone; each forward is over all that are not finished.

        Trees and rounds differ where the policy reckons with what is decoded besides. Raises UserError for a prompt
        that does not fit.
        """
        with torch.inference_mode():
            return self._decode(prompts, max_new_tokens, eos_ids, None, clock, processors)


def build(
    target: LanguageModel,
    drafter: LanguageModel | None,
    decoder: str,
    knobs: dict[str, Any],
    calibration: Calibration | None = None,
) -> Any:
    """The decoder plug-in `decoder` on these models, with the calibration that was measured for them.

    Raises UserError for knobs that it does not take, and where it needs a drafter and there is none.
    """
    built = plugins.load("decoding", decoder).Decoder
    with readable(f"the parameters of decoder {decoder}"):
        built.check(knobs)
    if drafter is None and built.needs(knobs).drafter == "required":
        raise UserError(f"decoder {decoder} with these parameters needs a drafter, and none is given: {knobs}")
    return built(target, drafter, calibration, **knobs)


def check_batch(decoder: Any, batch: int) -> None:
    """Raise UserError unless `decoder` (a decoder plug-in's class or object) can decode `batch` prompts together."""
    if batch > 1 and not hasattr(decoder, "decode_batch"):
        name = (decoder if isinstance(decoder, type) else type(decoder)).__module__.rpartition(".")[2]
        able = [n for n in plugins.names("decoding") if hasattr(plugins.load("decoding", n).Decoder, "decode_batch")]
        raise UserError(f"batch: {batch}; {name} decodes one prompt at a time, batches are for {', '.join(able)}")
