"""The growths of requests that are decoded together, and what they decide together: how many nodes they verify.

A target forward is as wide as its widest tree: where growths weigh nodes against seconds (PricedGrowth), the width that
saves most over all requests is chosen for all of them.
"""

import logging
from collections.abc import Sequence
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dynatree.costs.calibration import Calibration
from dynatree.generation.growth import Growth, GrowthPolicy, PricedGrowth
from dynatree.generation.request import Request
from dynatree.tree import TokenTree

log = logging.getLogger(__name__)


class BatchPlanner:
    """Requests under `policy`, by the costs of `calibration`; None: nothing is weighed in seconds."""

    def __init__(self, policy: GrowthPolicy, calibration: Calibration | None):
        self._policy, self._calibration = policy, calibration
        # As long as a request is there: another may begin before it has ended.
        self._growths: WeakKeyDictionary[Request, Growth] = WeakKeyDictionary()
        # Asked once: to look at a protocol takes longer than most of what is done in a round.
        self._priced = False

    def start(self, requests: Sequence[Request]) -> None:
        """A new batch, before its first round; warns where no batch as large was measured."""
        if self._calibration and len(requests) > (most := self._calibration.costs.most_rows):
            log.warning("cost table: no batch of %d was measured, one of %d stands for it", len(requests), most)
        shared = self._shared(len(requests))
        for request in requests:
            known = shared and shared.of(request.temperature, request.processors.active)
            # The root is the last committed token, and not in the cache yet.
            self._growths[request] = self._policy.start(known, len(request.committed) - 1)
        self._priced = all(isinstance(self._growths[request], PricedGrowth) for request in requests)

    def retain(self, requests: Sequence[Request]) -> None:
        """The requests that go on; each now pays a larger share of a forward."""
        shared = self._shared(len(requests))
        if shared and self._priced:
            for growth in self._priced_of(requests):
                growth.set_costs(shared)

    def growth(self, request: Request) -> Growth:
        """How the tree of `request` grows."""
        return self._growths[request]

    def priced(self, request: Request) -> PricedGrowth | None:
        """The same where it weighs nodes against seconds; None: it does not."""
        return cast("PricedGrowth", self._growths[request]) if self._priced else None

    def select(self, requests: Sequence[Request], trees: Sequence[TokenTree]) -> list[TokenTree]:
        """The trees cut to the nodes worth verifying."""
        if all(len(tree) == 1 for tree in trees):
            return [*trees]
        # Alone, and where nothing is weighed in seconds, each decides for itself.
        if not self._priced or len(requests) == 1:
            return [
                tree.subtree(self._growths[request].select(tree)) for request, tree in zip(requests, trees, strict=True)
            ]
        growths = self._priced_of(requests)
        width = self._width(growths, trees)
        return [tree.subtree(growth.select_within(tree, width)) for growth, tree in zip(growths, trees, strict=True)]

    def observe(self, request: Request, tree: TokenTree, path: Tensor) -> None:
        """The round of `request` is over: its verified `tree` and accepted path."""
        self._growths[request].observe(tree, path)

    def _priced_of(self, requests: Sequence[Request]) -> list[PricedGrowth]:
        return [cast("PricedGrowth", self._growths[request]) for request in requests]

    def _width(self, growths: Sequence[PricedGrowth], trees: Sequence[TokenTree]) -> int:
        """Nodes that each request may verify."""
        # No tree is larger than `most`, and a forward that is not that wide does not cost what a wider one does.
        most = max(len(tree) for tree in trees) - 1
        savings = [growth.savings(tree) for growth, tree in zip(growths, trees, strict=True)]
        return int(torch.stack(savings).sum(0)[: most + 1].argmax())

    def _shared(self, requests: int) -> Calibration | None:
        return self._calibration and self._calibration.shared(requests)
