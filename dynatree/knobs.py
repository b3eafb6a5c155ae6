"""The base of everything that is checked as it is read: unknown keys are refused, values never change."""

from pydantic import BaseModel, ConfigDict


class Knobs(BaseModel):
    """A pydantic model that refuses unknown keys and is frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
