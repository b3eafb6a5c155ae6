"""The best static tree for a drafter whose rank-b child is right with probability p_b, whatever the text.

Source: Sequoia (Chen et al., NeurIPS 2024, 2402.12374), section 4.1, dynamic programme over nodes, depth and children;
size and depth are those with the most expected tokens a second by the measured costs.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from dynatree import plugins
from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import MOST_NODES
from dynatree.generation.growth import Growth
from dynatree.policies import PolicySettings
from dynatree.tree import TokenTree

# A context in the middle of what is decoded: a static tree has one size.
_CONTEXT = 256


class StaticTree(NamedTuple):
    """`children[i]`: the nodes below node i, likeliest rank first; node 0 is the root. `expected`: tokens a round."""

    children: tuple[tuple[int, ...], ...]
    expected: float


class Policy(PolicySettings):
    """At most `depth` levels, `branch` children a node, `budget` nodes besides the root."""

    depth: int = Field(ge=0, le=32)  # most levels (D)
    branch: int = Field(ge=1, le=16)  # most children of a node (B)
    budget: int = Field(ge=0, le=MOST_NODES)  # most nodes (N), the root apart

    needs_costs: ClassVar[bool] = True
    takes_lookup: ClassVar[bool] = False

    def without_costs(self) -> PolicySettings:
        """The policy that takes over where nothing was measured."""
        policy: PolicySettings = plugins.load("policies", "threshold").Policy(
            depth=self.depth, branch=self.branch, threshold=None, budget=self.budget
        )
        return policy

    def start(self, calibration: Calibration | None, context: int) -> Growth:
        assert calibration is not None, "the decoder gives this policy a table, or takes another policy"
        costs = calibration.costs
        verify = costs.verify.at(_CONTEXT, 1 + self.budget)[1:]
        draft = costs.draft.at(_CONTEXT, max(1, self.budget)) if costs.draft else torch.zeros(max(1, self.budget) + 1)
        rates = tuple(calibration.step_rates.rates[: self.branch])
        tree = fastest(rates, self.depth, self.budget, tuple(verify.tolist()), tuple(draft.tolist()))
        return _Growth(self.branch, self.depth, tree)


class _Growth:
    """Grows one static tree in every round; nothing is learnt."""

    def __init__(self, branch: int, depth: int, static: StaticTree):
        self.branch, self.depth, self._static = branch, depth, static

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        if not expanded:  # nothing is proposed without a draft
            return [True] * len(log_probs)
        places, width = self._places(tree), len(log_probs) // len(expanded)
        return [rank < len(self._static.children[places[node]]) for node in expanded for rank in range(width)]

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        places = self._places(tree)
        return [node for node in candidates if self._static.children[places[node]]]

    def select(self, tree: TokenTree) -> list[int]:
        return [*range(len(tree))]

    def observe(self, tree: TokenTree, path: Tensor) -> None:
        pass

    def _places(self, tree: TokenTree) -> dict[int, int]:
        """Node of the static tree that each node of `tree` is: its rank is its order among its siblings."""
        places, taken = {0: 0}, [0] * len(tree)
        for node, parent in enumerate(tree.nodes.parents[1:], start=1):
            places[node] = self._static.children[places[parent]][taken[parent]]
            taken[parent] += 1
        return places


@lru_cache(maxsize=16)
def fastest(
    rates: tuple[float, ...], depth: int, budget: int, verify: tuple[float, ...], draft: tuple[float, ...]
) -> StaticTree:
    """The tree with the most expected tokens a second: `verify[n]` seconds for n nodes, `draft[w]` for a level of w."""

    def rate(tree: StaticTree) -> float:
        seconds, level = verify[len(tree.children) - 1], [0]
        while below := [child for node in level for child in tree.children[node]]:
            seconds += draft[sum(1 for node in level if tree.children[node])]
            level = below
        return tree.expected / seconds

    return max((tree for trees in best_trees(rates, depth, budget) for tree in trees), key=rate)


def best_trees(rates: Sequence[float], depth: int, budget: int) -> list[list[StaticTree]]:
    """For at most 0, 1, ... `depth` levels and each number of nodes 0..`budget` besides the root: the best tree.

    It expects most tokens. `rates[b]` is the probability that the child of rank b is right, given its parent is.
    Numbers of nodes that no such tree has are left out.
    """
    # value[l][m][b]: most tokens of a tree with m nodes, the root among them, at most l levels and exactly b children;
    # last[l][m][b]: nodes of its last child's subtree.
    none = float("-inf")
    nodes, branch = budget + 1, len(rates)
    value = [[[none] * (branch + 1) for _ in range(nodes + 1)] for _ in range(depth + 1)]
    last = [[[0] * (branch + 1) for _ in range(nodes + 1)] for _ in range(depth + 1)]
    for level in range(depth + 1):
        value[level][1][0] = 1.0
        below = [max(row) for row in value[level - 1]] if level else [none] * (nodes + 1)
        for m in range(2, nodes + 1):
            for b in range(1, branch + 1):
                for size in range(1, m):
                    found = value[level][m - size][b - 1] + rates[b - 1] * below[size]
                    if found > value[level][m][b]:
                        value[level][m][b], last[level][m][b] = found, size
    best = []
    for levels in range(depth + 1):
        trees = []
        for m in range(1, nodes + 1):
            row = value[levels][m]
            b = max(range(branch + 1), key=row.__getitem__)
            if row[b] > none:
                children: list[list[int]] = [[]]
                _unfold(value, last, levels, m, b, 0, children)
                trees.append(StaticTree(tuple(map(tuple, children)), row[b]))
        best.append(trees)
    return best


def _unfold(
    value: list[list[list[float]]],
    last: list[list[list[int]]],
    level: int,
    m: int,
    b: int,
    node: int,
    children: list[list[int]],
) -> None:
    sizes = []
    while b:
        size = last[level][m][b]
        sizes.append(size)
        m, b = m - size, b - 1
    for size in reversed(sizes):
        child = len(children)
        children[node].append(child)
        children.append([])
        row = value[level - 1][size]
        _unfold(value, last, level - 1, size, max(range(len(row)), key=row.__getitem__), child, children)
