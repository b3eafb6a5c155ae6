"""Growth and selection policies: which children a tree keeps, and which of its nodes are verified.

A policy is one file with a class `Policy`, a GrowthPolicy of its knobs.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dynatree.config import Knobs
from dynatree.costs.calibration import Calibration
from dynatree.tree import TokenTree


class Offer(NamedTuple):
    """A level to draft below `nodes` nodes, and the seconds that it is expected to be worth, nothing paid for yet.

    `verified`: nodes that the row would verify without it; `children`: how many more with it. `due`: drafted even if it
    does not pay, to see what it yields. All counts are at most cost.MOST_NODES.
    """

    nodes: int
    worth: float
    verified: int
    children: int
    due: bool


class GrowthPolicy(Knobs):
    """Besides what stands here a policy has `branch` and `depth`: most children of a node, most levels."""

    # Such a policy has `without_costs`, too.
    needs_costs: ClassVar[bool] = False
    # Whether a tree may begin with lookup's chain.
    takes_lookup: ClassVar[bool] = True

    @property
    def uses_calibration(self) -> bool:
        """Whether the drafter's step probabilities are to be calibrated."""
        return False

    def without_costs(self) -> "GrowthPolicy":
        """The policy that takes over where nothing was measured; asked only of one that `needs_costs`."""
        raise NotImplementedError

    def start(self, calibration: Calibration | None) -> None:
        """A new request: forget what adapted."""

    def reprice(self, calibration: Calibration | None) -> None:
        """Costs from now on, within a request: others that it was decoded with are finished."""

    def begin(self, context: int) -> None:
        """A new round behind `context` committed tokens."""

    def children(self, tree: TokenTree, log_probs: Tensor, expanded: Tensor) -> Tensor:
        """Mask [k] of the proposed children to keep: path `log_probs` [k], equally many of each node of `expanded` [f].

        A node's children stand together, likeliest first. A chain that needed no draft has no `expanded` node, and
        is kept from its beginning.
        """
        return torch.ones(len(log_probs), dtype=torch.bool)

    def expand(self, tree: TokenTree, candidates: Tensor) -> Tensor:
        """Of `candidates` (the root, then each level's nodes) those to draft children of, in one go; none: stop."""
        return candidates

    def offer(self) -> Offer | None:
        """Of the level that `expand` chose last; sharing.py asks, where rows draft together. None: as for `gains`."""
        return None

    def gains(self, tree: TokenTree) -> Tensor | None:
        """Seconds saved by a forward as wide as 0, 1, ... nodes besides the root, for this row of a batch alone.

        None, always: the policy does not reckon in seconds. Else it `needs_costs`; equally long for every row.
        """
        return None

    def fill(self, tree: TokenTree, width: int) -> Tensor:
        """As `select`, where rows of a batch decided by their `gains`: room is for `width` nodes besides the root."""
        raise NotImplementedError

    def select(self, tree: TokenTree) -> Tensor:
        """Nodes to verify: ascending, closed under parents, root included."""
        return torch.arange(len(tree))

    def observe(self, tree: TokenTree, kept: Tensor) -> None:
        """The verified `tree` and its accepted path, root first."""
