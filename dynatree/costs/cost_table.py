"""What a forward costs on this machine, measured once: policies read time from this table, never from a live clock.

So a trace is reproducible. Source of the idea: SmartSpec (Liu et al. 2024, 2406.14066), CAST (2510.26577).
"""

from bisect import bisect_left
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynatree.config import Knobs

NotNegative = Annotated[float, Field(ge=0)]

# Besides the root: no table tells what larger trees cost.
MOST_NODES = 127


def at_least(seconds: Tensor) -> Tensor:
    """Of `seconds` [n] by size: of that size or a larger one, for which there is use where it is the faster one."""
    return seconds.flip(0).cummin(0).values.flip(0)


class Curve(Knobs):
    """Median seconds of a forward over `tokens` new tokens behind each of `contexts` committed ones."""

    contexts: list[int] = Field(min_length=1)
    tokens: list[int] = Field(min_length=2)
    seconds: list[list[float]]  # [contexts][tokens]

    def nearest(self, context: int) -> int:
        """Index of the measured context that stands for `context`."""
        # Asked in every round: without a look at each of them.
        places, borders = self._ordered
        return places[bisect_left(borders, 2 * context)]

    @cached_property
    def _ordered(self) -> tuple[list[int], list[int]]:
        """Places of contexts, ascending, and of neighbours twice what lies in the midst of them."""
        places = sorted(range(len(self.contexts)), key=self.contexts.__getitem__)
        return places, [self.contexts[low] + self.contexts[high] for low, high in pairwise(places)]

    def at(self, context: int, most: int) -> Tensor:
        """Seconds [most + 1] of forwards over 0..most tokens behind `context`; 0 tokens cost nothing.

        Linear between measured points; beyond the last each further token costs what one does on average, or more.
        """
        row = self.seconds[self.nearest(context)]
        counts = torch.arange(most + 1, dtype=torch.float64)
        known = torch.tensor(self.tokens, dtype=torch.float64)
        right = torch.searchsorted(known, counts).clamp(1, len(known) - 1)
        values = torch.tensor(row, dtype=torch.float64)
        slope = (values[right] - values[right - 1]) / (known[right] - known[right - 1])
        curve = values[right - 1] + slope * (counts - known[right - 1])
        beyond = (counts - known[-1]).clamp(min=0)
        curve = torch.maximum(curve, values[-1] + beyond * values[-1] / known[-1]).where(beyond > 0, curve)
        curve[0] = 0
        return curve

    def between(self, other: "Curve", share: float) -> "Curve":
        """The curve that lies `share` of the way from this one to `other`, at the contexts of `other`."""
        tokens = sorted({*self.tokens, *other.tokens})
        seconds = [
            torch.lerp(self.at(context, tokens[-1]), other.at(context, tokens[-1]), share)[tokens].tolist()
            for context in other.contexts
        ]
        return Curve(contexts=other.contexts, tokens=tokens, seconds=seconds)

    def least(self, other: "Curve") -> "Curve":
        """The smaller seconds of two curves over the same contexts and tokens."""
        assert (self.contexts, self.tokens) == (other.contexts, other.tokens), "two measurements of one thing"
        rows = zip(self.seconds, other.seconds, strict=True)
        return self.model_copy(update={"seconds": [list(map(min, *row)) for row in rows]})

    def plus(self, seconds: float) -> "Curve":
        """The curve of a forward that takes `seconds` more."""
        return self.model_copy(update={"seconds": [[value + seconds for value in row] for row in self.seconds]})

    def beyond(self, one: float, more: float) -> "Curve":
        """The curve of forwards that take so many seconds more over `one` token and over `more`; less than none: less.

        No forward takes less than half of what it did.
        """
        seconds = [
            [
                max(value / 2, value + (one if tokens == 1 else more))
                for tokens, value in zip(self.tokens, row, strict=True)
            ]
            for row in self.seconds
        ]
        return self.model_copy(update={"seconds": seconds})

    def share(self, rows: int) -> "Curve":
        """The curve of one of `rows` that share the forward."""
        return self.model_copy(update={"seconds": [[value / rows for value in row] for row in self.seconds]})

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        rows = [len(row) for row in self.seconds]
        if rows != [len(self.tokens)] * len(self.contexts) or sorted(set(self.tokens)) != self.tokens:
            raise ValueError("seconds: expected a row a context and a value a token count, counts ascending")
        if any(not value > 0 for row in self.seconds for value in row):
            raise ValueError("seconds: expected positive numbers")
        return self


class BatchCosts(Knobs):
    """Seconds of forwards over `rows` requests at once, by new tokens of each row."""

    rows: int = Field(ge=2)
    verify: Curve
    draft: Curve | None = None


class BatchTable(Knobs):
    """Seconds of forwards over several requests at once; on which machine, of which weights (fingerprints)."""

    machine: dict[str, Any]
    models: dict[str, str]
    batches: list[BatchCosts]


class CostTable(Knobs):
    """Seconds of target and draft forwards, their per-round work included; on which machine, of which weights.

    `models`: fingerprint (engine/language_model.py) of `target` and, if there is one, `drafter`. `handling`,
    `surcharge`: what `draft` has besides forwards, for a row's own work and for what a level takes more in decoding.
    `switch`: what a forward over several tokens takes more behind many over one, which have other weights in the
    processor's caches. `beside`: what a round takes besides its forward where no nodes are looked for; `looking`: what
    it takes more where they are, though none are found, of one request and of each further one; `drawing`: what either
    takes more of each request whose tokens are drawn than of one with a penalty. (0: not measured, and taken to be
    nothing.)
    `batches`: the same for several requests at once, where that was measured.
    """

    machine: dict[str, Any]
    models: dict[str, str]
    verify: Curve
    draft: Curve | None = None
    handling: float = Field(default=0.0, ge=0)
    surcharge: float = Field(default=0.0, ge=0)
    switch: NotNegative = 0.0
    beside: NotNegative = 0.0
    looking: tuple[NotNegative, NotNegative] = (0.0, 0.0)
    drawing: tuple[NotNegative, NotNegative] = (0.0, 0.0)
    batches: list[BatchCosts] = Field(default_factory=list)

    @property
    def most_rows(self) -> int:
        """Requests at once, as many as were measured."""
        return max([1, *(batch.rows for batch in self.batches)])

    def shared(self, rows: int) -> "CostTable":
        """What a forward costs one of `rows` requests that are decoded together: its share, t(rows, n) / rows.

        An approximation: as if all trees of a round had as many nodes. Between measured numbers of rows the seconds are
        linear; beyond the largest (`most_rows`) that one stands for `rows`.
        """
        measured = {1: (self.verify, self.draft), **{batch.rows: (batch.verify, batch.draft) for batch in self.batches}}
        counted = max(1, min(rows, self.most_rows))
        low, high = max(n for n in measured if n <= counted), min(n for n in measured if n >= counted)
        verify, draft = measured[high]
        if low < high:
            share, (verify_low, draft_low) = (counted - low) / (high - low), measured[low]
            verify = verify_low.between(verify, share)
            draft = draft_low and draft and draft_low.between(draft, share)
        known = {"verify": verify.share(counted), "draft": draft and draft.share(counted)}
        # Of several nothing is known of switching.
        return self.model_copy(update=known | ({"switch": 0.0} if counted > 1 else {}))

    def drawn(self) -> "CostTable":
        """What it is where tokens are drawn."""
        beside, looking = self.drawing
        first, further = self.looking
        known = {"beside": self.beside + beside, "looking": (first + looking, further + looking)}
        return self.model_copy(update=known | {"drawing": (0.0, 0.0)})

    def looked(self, rows: int) -> float:
        """Seconds that a round takes more where nodes are looked for below each of `rows` roots."""
        first, further = self.looking
        return first + (rows - 1) * further

    @model_validator(mode="after")
    def _all_draft_or_none(self) -> Self:
        if wrong := [batch.rows for batch in self.batches if (batch.draft is None) != (self.draft is None)]:
            raise ValueError(f"batches: draft costs of {wrong[0]} rows or of one row, but not of both")
        return self

    def drafting_plus(self, seconds: float) -> "CostTable":
        """The table with draft forwards that take `seconds` more in decoding. Batches are measured after it."""
        return self.model_copy(
            update={"draft": self.draft and self.draft.plus(seconds), "surcharge": self.surcharge + seconds}
        )

    @property
    def batch_table(self) -> BatchTable:
        """Its batches as a table of their own."""
        return BatchTable(machine=self.machine, models=self.models, batches=self.batches)


Table = TypeVar("Table", CostTable, BatchCosts)


def least(one: Table, two: Table) -> Table:
    """The smaller seconds of two measurements of the same pair on the same machine."""
    draft = one.draft and two.draft and one.draft.least(two.draft)
    return one.model_copy(update={"verify": one.verify.least(two.verify), "draft": draft})
