"""Growth and selection policies: which children a tree keeps, and which of its nodes are verified.

A policy is one file with a class `Policy`, a `PolicySettings` of its parameters, and five hooks: `start`, and of the
growth that it gives (generation/growth.py) `children`, `expand`, `select` and `observe`. A policy that remembers
nothing from round to round is its own growth; others start an object with the state of one request. A growth that
weighs nodes against seconds is a `PricedGrowth`, too.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

from torch import Tensor

from dynatree.config import Knobs
from dynatree.costs.calibration import Calibration
from dynatree.generation.growth import Growth
from dynatree.tree import TokenTree


class PolicySettings(Knobs):
    """A policy's parameters, and the growth of one that remembers nothing: it has `branch` and `depth` besides."""

    # Such a policy has `without_costs`, too.
    needs_costs: ClassVar[bool] = False
    # Whether a tree may begin with lookup's chain.
    takes_lookup: ClassVar[bool] = True
    # Whether a node is kept and verified whatever was drafted below it: verification/traversal.py needs that.
    cuts_from_above: ClassVar[bool] = False

    @property
    def uses_calibration(self) -> bool:
        """Whether the drafter's step probabilities are to be calibrated."""
        return False

    def without_costs(self) -> "PolicySettings":
        """The policy that takes over where nothing was measured; asked only of one that `needs_costs`."""
        raise NotImplementedError

    def start(self, calibration: Calibration | None, context: int) -> Growth:
        """The growth of a request whose first tree is drafted after `context` tokens, the root not counted."""
        return cast(Growth, self)

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        """See `Growth`: all."""
        return [True] * len(log_probs)

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        """See `Growth`: all."""
        return [*candidates]

    def select(self, tree: TokenTree) -> list[int]:
        """See `Growth`: all."""
        return [*range(len(tree))]

    def observe(self, tree: TokenTree, path: Tensor) -> None:
        """See `Growth`: nothing is learnt."""


def steps_below(tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[list[float]]:
    """Log-probabilities of the steps to the children that `Growth.children` is asked for, of each of `expanded` [f]."""
    width, values = len(log_probs) // len(expanded), tree.nodes.log_probs
    return [
        [value - values[node] for value in log_probs[place * width : (place + 1) * width]]
        for place, node in enumerate(expanded)
    ]
