"""How often drafted tokens are right, given what the drafter says: fitted on tuning text, asked while drafting.

The target's greedy choice follows the drafter's ranks more often than its probabilities say. Each rank has a logistic
curve (Platt 1999) on the stated log-odds; a product of calibrated steps falls along a path, as a tree needs.
"""

from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynatree.cost import CostTable
from dynatree.knobs import Knobs

_LEAST, _MOST = 1e-4, 0.995


class StepCalibration(Knobs):
    """`ranks` [b][2]: intercept and slope of each rank's curve; later ranks take the last. `lookup`: see lookup.py."""

    ranks: list[tuple[float, float]] = Field(min_length=1)
    lookup: list[float]

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        if wrong := [p for p in self.lookup if not 0 <= p <= 1]:
            raise ValueError(f"lookup: {wrong[0]} is no probability")
        return self

    def steps(self, log_probs: Tensor) -> Tensor:
        """Calibrated step log-probabilities [f, b] of stated ones [f, b], likeliest first; a row sums to at most 1."""
        curves = torch.tensor(self.ranks)[torch.arange(log_probs.shape[1]).clamp(max=len(self.ranks) - 1)]
        probability = torch.sigmoid(curves[:, 0] + curves[:, 1] * log_odds(log_probs)).clamp(_LEAST, _MOST)
        return (probability / probability.sum(1, keepdim=True).clamp(min=1)).log()


class Calibration(NamedTuple):
    """What a machine and a pair were measured to be: seconds of forwards, and how often drafted tokens are right."""

    costs: CostTable
    steps: StepCalibration


def log_odds(log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)), kept finite."""
    probability = log_probs.exp().clamp(1e-6, 1 - 1e-6)
    return (probability / (1 - probability)).log()
