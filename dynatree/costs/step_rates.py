"""How often drafted tokens are right, given what the drafter says: fitted on tuning text, asked while drafting.

The target's greedy choice follows the drafter's ranks more often than its probabilities say. Each rank has a logistic
curve (Platt 1999) on the stated log-odds; a product of calibrated steps falls along a path, as a tree needs. Where
tokens are drawn, what is stated is the softmax of perturbed scores (sampling.py): no probability, but its log-odds are
how far a token is ahead of all others, and the curves, fitted on text drawn at about that temperature, make it one.
"""

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynatree.config import Knobs

log = logging.getLogger(__name__)

# Bounds of what is believed of a step, and how far from 0 and 1 log-odds are taken.
LEAST, MOST = 1e-4, 0.995
EPS = 1e-6
# Of the online correction: hits that a request starts with, and what an observation keeps of the older ones.
_PRIOR_HITS, _MEMORY = 3.0, 0.97


class SampledRates(Knobs):
    """`ranks`, `rates`, `lookup` and `successors` as of `StepRates`, of text drawn at `temperature`."""

    temperature: float = Field(gt=0)
    ranks: list[tuple[float, float]] = Field(min_length=1)
    rates: list[float] = Field(min_length=1)
    lookup: list[float]
    successors: list[tuple[float, float]] = Field(default_factory=list)


class StepRates(Knobs):
    """`ranks` [b][2]: intercept and slope of each rank's curve; later ranks take the last.

    `rates` [r]: how often the drafter's rank is right, along the target's greedy text. `lookup`: how often lookup's
    proposals are, by the match's length (lookup.py). `rates_processed`, `lookup_processed`: the same where logits
    processors are on, which keep text from looping (empty: as without). `successors` [b][2]: curves as `ranks` of a
    table of successors (empty: there was none). `sampled`: the same of text that is drawn (empty: as of greedy text).
    """

    ranks: list[tuple[float, float]] = Field(min_length=1)
    rates: list[float] = Field(min_length=1)
    lookup: list[float]
    rates_processed: list[float] = Field(default_factory=list)
    lookup_processed: list[float] = Field(default_factory=list)
    successors: list[tuple[float, float]] = Field(default_factory=list)
    sampled: list[SampledRates] = Field(default_factory=list)
    version: int = 0

    def at(self, temperature: float, processed: bool = False) -> "StepRates":
        """Those of text drawn at this temperature, or at the nearest that was seen; 0: of greedy text.

        `processed`: where logits processors are on; of text that is drawn that changes little, and is not known.
        """
        if temperature and not self.sampled:
            _tell_once(temperature, None)
        if not temperature or not self.sampled:
            known = {"rates": self.rates_processed or self.rates, "lookup": self.lookup_processed or self.lookup}
            return self.model_copy(update=known) if processed else self
        nearest = min(self.sampled, key=lambda one: abs(one.temperature - temperature))
        if not math.isclose(nearest.temperature, temperature):
            _tell_once(temperature, nearest.temperature)
        found = nearest.model_dump(exclude={"temperature"})
        return self.model_copy(update={**found, "rates_processed": [], "lookup_processed": [], "sampled": []})

    @property
    def lookups(self) -> list[list[float]]:
        """All rates of lookup."""
        processed = [self.lookup_processed] if self.lookup_processed else []
        return [self.lookup, *processed, *(one.lookup for one in self.sampled)]

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        every = (self.rates, self.rates_processed, *(one.rates for one in self.sampled), *self.lookups)
        if wrong := [p for rates in every for p in rates if not 0 <= p <= 1]:
            raise ValueError(f"lookup, rates, those processed, sampled: {wrong[0]} is no probability")
        return self

    def calibrated(self, stated: Sequence[float]) -> list[float]:
        """Calibrated probabilities of one node's children, of `stated` ones, likeliest first; at most 1 together."""
        last = len(self.ranks) - 1
        return shared([curve(p, *self.ranks[min(rank, last)]) for rank, p in enumerate(stated)])


def curve(probability: float, intercept: float, slope: float) -> float:
    """What a rank's curve makes of one stated probability."""
    p = min(max(probability, EPS), 1 - EPS)
    return 1 / (1 + math.exp(-intercept) * ((1 - p) / p) ** slope)


class OnlineCorrection:
    """How much more or less often proposals are right in this request than the calibration says.

    A ratio of decayed counts, drawn to 1 by as many hits as `_PRIOR_HITS`: text differs from tuning text, and logits
    processors change it more. One for all ranks: each alone is hit too seldom to learn from.
    """

    def __init__(self) -> None:
        self._hits = self._stated = 0.0

    def corrected(self, calibrated: Sequence[float]) -> list[float]:
        """Corrected probabilities of one node's children, of `calibrated` ones; at most 1 together."""
        return shared([p * self.ratio for p in calibrated])

    @property
    def ratio(self) -> float:
        """What a calibrated probability is multiplied by."""
        return (_PRIOR_HITS + self._hits) / (_PRIOR_HITS + self._stated)

    def observe(self, stated: float, hit: bool) -> None:
        """One node's calibrated proposals, of which one was the target's choice with probability `stated`, or `hit`."""
        self._hits, self._stated = _MEMORY * self._hits + hit, _MEMORY * self._stated + stated


@cache
def _tell_once(temperature: float, nearest: float | None) -> None:
    if nearest is None:
        log.warning("calibration: it knows greedy text alone, and temperature is %s; measure it again", temperature)
    else:
        log.warning("calibration: none of text drawn at temperature %s, that at %s is taken", temperature, nearest)


def shared(probabilities: Sequence[float]) -> list[float]:
    """Those of siblings, kept from 0 and 1, and scaled where they sum to more than 1."""
    kept = [min(max(p, LEAST), MOST) for p in probabilities]
    total = max(1.0, sum(kept))
    return [p / total for p in kept]


def log_odds(log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)), kept finite."""
    return torch.logit(log_probs.exp(), eps=EPS)
