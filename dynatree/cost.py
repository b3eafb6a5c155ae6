"""What a forward costs on this machine, measured once: policies read time from this table, never from a live clock.

So a trace is reproducible. Source of the idea: SmartSpec (Liu et al. 2024, 2406.14066), CAST (2510.26577).
"""

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynatree.knobs import Knobs


class Curve(Knobs):
    """Median seconds of a forward over `tokens` new tokens behind each of `contexts` committed ones."""

    contexts: list[int] = Field(min_length=1)
    tokens: list[int] = Field(min_length=2)
    seconds: list[list[float]]  # [contexts][tokens]

    def nearest(self, context: int) -> int:
        """Index of the measured context that stands for `context`."""
        return min(range(len(self.contexts)), key=lambda i: abs(self.contexts[i] - context))

    def at(self, context: int, most: int) -> Tensor:
        """Seconds [most + 1] of forwards over 0..most tokens behind `context`; 0 tokens cost nothing.

        Linear between measured points and beyond the last.
        """
        row = self.seconds[self.nearest(context)]
        counts = torch.arange(most + 1, dtype=torch.float64)
        known = torch.tensor(self.tokens, dtype=torch.float64)
        right = torch.searchsorted(known, counts).clamp(1, len(known) - 1)
        values = torch.tensor(row, dtype=torch.float64)
        slope = (values[right] - values[right - 1]) / (known[right] - known[right - 1])
        curve = values[right - 1] + slope * (counts - known[right - 1])
        curve[0] = 0
        return curve

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        rows = [len(row) for row in self.seconds]
        if rows != [len(self.tokens)] * len(self.contexts) or sorted(set(self.tokens)) != self.tokens:
            raise ValueError("seconds: expected a row a context and a value a token count, counts ascending")
        if any(value <= 0 for row in self.seconds for value in row):
            raise ValueError("seconds: expected positive numbers")
        return self


class CostTable(Knobs):
    """Seconds of target and draft forwards, their per-round work included; on which machine, of which weights.

    `models`: fingerprint (model.py) of `target` and, if there is one, `drafter`.
    """

    machine: dict[str, Any]
    models: dict[str, str]
    verify: Curve
    draft: Curve | None = None
