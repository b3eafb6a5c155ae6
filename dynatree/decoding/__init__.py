"""Decoders: a prompt in, a Trace out.

A decoder is one file with a class `Decoder` of (target, drafter, **knobs):

    NEEDS_DRAFTER      whether a drafter model must be given
    check(knobs)       raise ValueError (pydantic's) for knobs it does not take, before any loading
    decode(prompt, max_new_tokens, eos_ids, on_commit, clock) -> Trace
"""

from pydantic import BaseModel, ConfigDict


class NoKnobs(BaseModel):
    """For a decoder without knobs: refuses every key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
