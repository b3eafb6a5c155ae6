"""Decoders: a prompt in, a Trace out.

A decoder is one file with a class `Decoder` of (target, drafter, calibration, **knobs):

    check(knobs)           raise ValueError (pydantic's) for knobs it does not take, before any loading
    needs(knobs) -> Needs  what must or may be given besides the target
    decode(prompt, max_new_tokens, eos_ids, on_commit, clock, processors) -> Trace
    decode_batch(prompts, max_new_tokens, eos_ids, processors) -> list[Trace]
                           the same for each of several prompts, decoded together; left out where it cannot be
"""

from typing import NamedTuple

from dynatree.knobs import Knobs


class Needs(NamedTuple):
    """`drafter`: "unused", "optional" or "required"; `calibration`: whether one is made use of."""

    drafter: str = "unused"
    calibration: bool = False


class NoKnobs(Knobs):
    """For a decoder without knobs: refuses every key."""
