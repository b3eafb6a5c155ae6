"""How the tree of one request grows: what a policy decides and a drafter asks. Contracts alone."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from dynatree.costs.calibration import Calibration
from dynatree.tree import TokenTree


class Growth(Protocol):
    """The decisions of a policy for one request, round by round."""

    @property
    def branch(self) -> int:
        """Most children of a node."""

    @property
    def depth(self) -> int:
        """Most levels of a tree."""

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        """Which of `k` proposed children to keep: path `log_probs` [k], equally many of each node of `expanded` [f].

        A node's children follow one another, likeliest first. A chain that needed no draft has no `expanded` node, and
        is kept from its beginning.
        """

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        """Of `candidates` (the root, then each level's nodes) those to draft children of, in one go; none: stop."""

    def select(self, tree: TokenTree) -> list[int]:
        """Nodes to verify: ascending, closed under parents, root included."""

    def observe(self, tree: TokenTree, path: Tensor) -> None:
        """The round is over: the verified `tree` and its accepted path [1 + accepted], root first."""


@runtime_checkable
class PricedGrowth(Growth, Protocol):
    """A growth that weighs nodes against the seconds of a forward, which several requests may share."""

    @property
    def step(self) -> float:
        """Seconds of a round without nodes."""

    @property
    def level(self) -> float:
        """Seconds of the cheapest level of drafting; 0: none is to be had."""

    @property
    def drafting(self) -> float:
        """Seconds of the levels of this round so far, by the table."""

    def set_costs(self, calibration: Calibration) -> None:
        """Costs from now on: fewer requests than before share a forward."""

    def offered(self, together: Sequence[float]) -> None:
        """What is to be had below the root without a level: how likely its best 1, 2, ... children are together."""

    def savings(self, tree: TokenTree, most: int) -> list[float]:
        """Seconds saved by a forward over 0, 1, ... `most` nodes of `tree` besides the root, by this request alone.

        No nodes save 0. `most` may be more than the tree has; fewer where the growth allows no more.
        """

    def saved(self, tree: TokenTree, path: Tensor, width: int) -> float:
        """Seconds that the accepted `path` of `tree` saved this request, in a forward over `width` nodes of each."""

    def select_within(self, tree: TokenTree, width: int) -> list[int]:
        """As `select`, where the forward has room for `width` nodes besides the root."""


class GrowthPolicy(Protocol):
    """A policy with its parameters: it starts the growth of each request."""

    def start(self, calibration: Calibration | None, context: int) -> Growth:
        """The growth of a request whose first tree is drafted after `context` tokens, the root not counted."""
