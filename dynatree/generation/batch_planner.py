"""The growths of requests that are decoded together, and what they decide together: how many nodes they verify, and
whether nodes are looked for at all.

A target forward is as wide as its widest tree: where growths weigh nodes against seconds (PricedGrowth), the width that
saves most over all requests is chosen for all of them. The wider a forward is by itself, the less a tree saves, while
each request's nodes take their time to be found: where they do not save it, requests rest.
"""

import logging
import math
from collections.abc import Sequence
from typing import cast
from weakref import WeakKeyDictionary

from torch import Tensor

from dynatree.costs.calibration import Calibration
from dynatree.costs.step_rates import LEAST, MOST
from dynatree.generation.growth import Growth, GrowthPolicy, PricedGrowth
from dynatree.generation.request import Request
from dynatree.tree import TokenTree

log = logging.getLogger(__name__)

# What looking for nodes may lose, in steps without any: so many in a row, and of each round so much. Of what it has
# gained no more than so many count.
_MOST_LOST, _ALLOWED, _MOST_GAINED = 1.0, 0.005, 9.0
# Stands behind the last one of a path.
_NO_TOKEN = -1


class _Looking:
    """Whether the rounds of a batch look for nodes: as long as what that loses is within what it may lose.

    It loses that much and no more where nodes never pay, however long the text; what it gains may be lost again. It
    goes by what the cost table says, not by a clock, so that a trace is reproducible.
    """

    def __init__(self, price: float, expected: float, step: float) -> None:
        """Seconds: `price` that looking takes; `expected` that a round is to gain by it, by what is known of other
        text; `step` of one without."""
        self.price, self._step, self._looks = price, step, expected >= 0
        self._left = _MOST_LOST if self._looks else 0.0

    def due(self) -> bool:
        """Whether the round that begins looks."""
        self._left = min(_MOST_GAINED, self._left + _ALLOWED)
        self._looks = self._looks or self._left >= _MOST_LOST
        return self._looks

    def observe(self, gain: float) -> None:
        """A round has looked, and gained so many seconds by it (less than none: it lost them)."""
        self._left = min(_MOST_GAINED, self._left + gain / self._step)
        self._looks = self._left > 0


class BatchPlanner:
    """Requests under `policy`, by the costs of `calibration`; None: nothing is weighed in seconds."""

    def __init__(self, policy: GrowthPolicy, calibration: Calibration | None):
        self._policy, self._calibration = policy, calibration
        # As long as a request is there: another may begin before it has ended.
        self._growths: WeakKeyDictionary[Request, Growth] = WeakKeyDictionary()
        self._looking: WeakKeyDictionary[Request, _Looking] = WeakKeyDictionary()
        # By how many requests there are, and whether their tokens are drawn, what it is for each: the same object, by
        # which growths know it again.
        self._by_rows: dict[tuple[int, bool], Calibration] = {}
        # Of a round that looks what that takes, and what trees a rest would have.
        self._spent: tuple[float, list[TokenTree]] | None = None
        # Asked once: to look at a protocol takes longer than most of what is done in a round.
        self._priced = False

    def start(self, requests: Sequence[Request]) -> None:
        """A new batch, before its first round; warns where no batch as large was measured."""
        if self._calibration and len(requests) > (most := self._calibration.costs.most_rows):
            log.warning("cost table: no batch of %d was measured, one of %d stands for it", len(requests), most)
        shared = self._shared(requests)
        for request in requests:
            known = shared and shared.of(request.temperature, request.processors.active)
            # The root is the last committed token, and not in the cache yet.
            self._growths[request] = self._policy.start(known, len(request.committed) - 1)
        self._priced = all(isinstance(self._growths[request], PricedGrowth) for request in requests)
        self._look_from_now_on(requests)

    def retain(self, requests: Sequence[Request]) -> None:
        """The requests that go on; each now pays a larger share of a forward."""
        shared = self._shared(requests)
        if shared and self._priced:
            for growth in self._priced_of(requests):
                growth.set_costs(shared)
            self._look_from_now_on(requests)

    def growth(self, request: Request) -> Growth:
        """How the tree of `request` grows."""
        return self._growths[request]

    def priced(self, request: Request) -> PricedGrowth | None:
        """The same where it weighs nodes against seconds; None: it does not."""
        return cast("PricedGrowth", self._growths[request]) if self._priced else None

    def looks(self, requests: Sequence[Request]) -> bool:
        """Whether this round looks for nodes that take time to be found. Asked once a round."""
        self._spent = None  # of a round that failed, of these requests or of others
        looking = self._looking.get(requests[0])
        return looking is None or looking.due()

    def may_rest(self, requests: Sequence[Request]) -> bool:
        """Whether it makes use of being told what looking found for these requests."""
        return requests[0] in self._looking

    def looked(self, requests: Sequence[Request], at_rest: Sequence[TokenTree]) -> None:
        """It has looked, where a round that rests would have the trees `at_rest`."""
        if looking := self._looking.get(requests[0]):
            levels = sum(growth.drafting for growth in self._priced_of(requests))
            self._spent = looking.price + levels, [*at_rest]

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

    def observe(self, requests: Sequence[Request], trees: Sequence[TokenTree], paths: Sequence[Tensor]) -> None:
        """The round is over: the verified `trees` and accepted `paths`."""
        if self._spent:
            spent, at_rest = self._spent
            saved = self._saved(requests, trees, paths) - self._saved_at_rest(requests, at_rest, trees, paths)
            self._looking[requests[0]].observe(saved - spent)
            self._spent = None
        for request, tree, path in zip(requests, trees, paths, strict=True):
            self._growths[request].observe(tree, path)

    def _priced_of(self, requests: Sequence[Request]) -> list[PricedGrowth]:
        return [cast("PricedGrowth", self._growths[request]) for request in requests]

    def _width(self, growths: Sequence[PricedGrowth], trees: Sequence[TokenTree]) -> int:
        """Nodes that each request may verify."""
        savings = self._savings(growths, trees)
        return savings.index(max(savings))

    def _savings(self, growths: Sequence[PricedGrowth], trees: Sequence[TokenTree]) -> list[float]:
        """Seconds saved over all requests by a forward over 0, 1, ... nodes of each."""
        # No tree is larger than `most`, and a forward that is not that wide does not cost what a wider one does.
        most = max(len(tree) for tree in trees) - 1
        each = [growth.savings(tree, most) for growth, tree in zip(growths, trees, strict=True)]
        # Lists: there are few nodes, and tensors of them took longer.
        return [sum(saved) for saved in zip(*each, strict=True)]

    def _saved(self, requests: Sequence[Request], trees: Sequence[TokenTree], paths: Sequence[Tensor]) -> float:
        """Seconds that the accepted `paths` of the verified `trees` saved."""
        width = max(len(tree) for tree in trees) - 1
        rows = zip(self._priced_of(requests), trees, paths, strict=True)
        return sum(growth.saved(tree, path, width) for growth, tree, path in rows)

    def _saved_at_rest(
        self,
        requests: Sequence[Request],
        at_rest: Sequence[TokenTree],
        trees: Sequence[TokenTree],
        paths: Sequence[Tensor],
    ) -> float:
        """The same, had the trees `at_rest` been verified: of them what is on those `paths` is accepted."""
        if all(len(tree) == 1 for tree in at_rest):
            return 0.0
        growths = self._priced_of(requests)
        width = self._width(growths, at_rest)
        kept = [tree.subtree(growth.select_within(tree, width)) for growth, tree in zip(growths, at_rest, strict=True)]
        return self._saved(requests, kept, [_along(*row) for row in zip(kept, trees, paths, strict=True)])

    def _look_from_now_on(self, requests: Sequence[Request]) -> None:
        """Begin to look, or to rest: by how often a drafter is right below a root of such text."""
        shared = self._shared(requests) if self._priced else None
        # 0: what it takes is not known.
        if not (shared and (price := shared.costs.looked(len(requests)))):
            return
        assert self._calibration, "what has a price was measured"
        trees, levels = [], 0.0
        for request in requests:
            known = self._calibration.of(request.temperature, request.processors.active).step_rates
            rates = known.rates[: self._growths[request].branch]
            steps = [math.log(min(max(rate, LEAST), MOST)) for rate in rates]
            trees.append(TokenTree.root(0).extend([0] * len(steps), range(len(steps)), steps))
            # A table of successors has its nodes for nothing else; a model's take a level.
            levels += 0.0 if known.successors else self._priced_of([request])[0].level
        growths = self._priced_of(requests)
        expected = max(self._savings(growths, trees)) - price - levels
        looking = _Looking(price, expected, sum(growth.step for growth in growths))
        self._looking.update(dict.fromkeys(requests, looking))

    def _shared(self, requests: Sequence[Request]) -> Calibration | None:
        if self._calibration is None:
            return None
        asked = len(requests), any(request.temperature for request in requests)
        if asked not in self._by_rows:
            self._by_rows[asked] = self._calibration.shared(*asked)
        return self._by_rows[asked]


def _along(tree: TokenTree, other: TokenTree, path: Tensor) -> Tensor:
    """The path of `tree` as far as it has the tokens of `path` of the `other`."""
    tokens = iter([*(other.nodes.tokens[node] for node in path.tolist()[1:]), _NO_TOKEN])
    return tree.accepted_path(lambda _: next(tokens))[0]
