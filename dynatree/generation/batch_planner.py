"""What requests that are decoded together decide together: who drafts a level, and how wide a verification is.

A draft forward costs little less for one of them than for all, and a target forward is as wide as its widest tree; a
policy that counts in seconds (`gains`, `offer`) knows its own row alone.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import MOST_NODES, at_least
from dynatree.policies import Offer

log = logging.getLogger(__name__)


class Sharer(Protocol):
    """A request between its rounds."""

    committed: list[int]

    @property
    def nodes(self) -> int:
        """Of its tree, the root apart."""

    def gains(self) -> Tensor | None:
        """See `GrowthPolicy.gains`."""

    def offer(self) -> Offer | None:
        """See `GrowthPolicy.offer`."""


S = TypeVar("S", bound=Sharer)


class _Seconds(NamedTuple):
    """Of forwards over rows together: verifying exactly or at least 0, 1, ... nodes a row, drafting below so many."""

    verify: list[float]
    at_least: list[float]
    draft: list[float]


class Sharing:
    """By the costs of `calibration`; with None nothing is reckoned in seconds."""

    def __init__(self, calibration: Calibration | None):
        self._calibration = calibration
        self._of: dict[int, Calibration | None] = {}
        # Key: rows, context.
        self._seconds: dict[tuple[int, int], _Seconds] = {}

    def begin(self, rows: int) -> None:
        """A new batch; warns where no batch as large was measured."""
        if self._calibration and rows > (most := self._calibration.costs.most_rows):
            log.warning("cost table: no batch of %d was measured, one of %d stands for it", rows, most)

    def of(self, rows: int) -> Calibration | None:
        """What the calibration is for each of `rows` rows."""
        if rows not in self._of:
            self._of[rows] = self._calibration and self._calibration.shared(rows)
        return self._of[rows]

    def width(self, rows: Sequence[Sharer]) -> int | None:
        """Nodes that every row may verify. None: each decides for itself, being alone or not reckoning in seconds."""
        gains = [row.gains() for row in rows] if len(rows) > 1 else []
        reckoned = [gain for gain in gains if gain is not None]
        if not reckoned:
            return None
        # No tree is larger than `most`, and a forward that is not that wide does not cost what a wider one does.
        most = max(row.nodes for row in rows)
        return int(torch.stack(reckoned).sum(0)[: most + 1].argmax())

    def drafting(self, growing: list[S], rows: Sequence[S]) -> list[S]:
        """Those of `growing` that draft their next level in one forward, where together that pays best.

        Each one's policy counted on all `rows` to share the forward. All of `growing` where none reckons.
        """
        offers = [(place, offer) for place, row in enumerate(growing) if len(rows) > 1 and (offer := row.offer())]
        if not offers:
            return growing
        offers.sort(key=lambda placed: (placed[1].due, placed[1].worth), reverse=True)
        now, together = self.width(rows) or 0, self.of(len(rows))
        assert together, "a policy that reckons was given what forwards cost"
        # All counts by the context that the batch was measured at: a difference is to be one of rows alone.
        verify = together.costs.verify
        context = verify.contexts[verify.nearest(max(len(row.committed) for row in rows))]
        taken = self._taken(len(rows), context)
        widths = {place: max(now, min(now, offer.verified) + offer.children) for place, offer in offers}
        due = sum(offer.due for _, offer in offers)
        best, chosen = 0.0 if due == 0 else -float("inf"), [place for place, _ in offers[:due]]
        # A level is as dear as its dearest row makes it: for each such limit the most worthy rows within it.
        for limit in {(offer.nodes, widths[place]) for place, offer in offers}:
            nodes, width, worth = 0, now, 0.0
            among: list[int] = []
            for place, offer in offers:
                if not offer.due and (offer.nodes > limit[0] or widths[place] > limit[1]):
                    continue
                among.append(place)
                nodes, width, worth = max(nodes, offer.nodes), max(width, widths[place]), worth + offer.worth
                wider = max(0.0, taken.at_least[width] - taken.verify[now])
                gain = worth - wider - self._taken(len(among), context).draft[nodes]
                if gain > best and len(among) >= due:
                    best, chosen = gain, [*among]
        # In their order: rows in order are a view of the draft cache, others a copy.
        return [growing[place] for place in sorted(chosen)]

    def _taken(self, rows: int, context: int) -> _Seconds:
        if (rows, context) not in self._seconds:
            calibration = self.of(rows)
            assert calibration and calibration.costs.draft, "a policy that reckons was given what the drafter takes"
            verify = rows * calibration.costs.verify.at(context, 1 + MOST_NODES)[1:]
            draft = rows * calibration.costs.draft.at(context, MOST_NODES)
            self._seconds[rows, context] = _Seconds(verify.tolist(), at_least(verify).tolist(), draft.tolist())
        return self._seconds[rows, context]
