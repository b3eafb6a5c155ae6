"""The rule-based growth of the DynaTree paper (repository cny123222/DynaTree, paper/dynatree.tex), for comparison.

Children by the drafter's confidence, depth by the path's probability, both bounds moved by the recent acceptance; as
the paper states it, which its public code does not do.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from dynatree.costs.calibration import Calibration
from dynatree.generation.growth import Growth
from dynatree.policies import PolicySettings, steps_below
from dynatree.tree import TokenTree

# The paper's constants: children a node by confidence, least v to expand, v that expands beyond the base depth,
# rounds of history, acceptance aimed at, step of the bounds.
_SURE, _UNSURE = 0.9, 0.4
_MOST, _USUAL, _FEWEST = 3, 2, 1
_EXPANDABLE, _DEEP = 0.1, 0.5
_HISTORY, _AIM, _RATE = 10, 0.7, 0.05


class Policy(PolicySettings):
    """`depth` is D_max, `base_depth` D_0; `threshold` (tau) prunes by v, the best `budget` (N) nodes are verified."""

    depth: int = Field(ge=1, le=64, default=8)  # most levels (D_max)
    base_depth: int = Field(ge=1, default=5)  # levels beyond which only likely nodes are expanded (D_0)
    threshold: float = Field(ge=0, le=1, default=0.05)  # least path probability of a node (tau)
    budget: int = Field(ge=0, le=1024, default=256)  # most nodes verified (N), the root apart

    @model_validator(mode="after")
    def _deeper(self) -> Self:
        if self.base_depth > self.depth:
            raise ValueError(f"base_depth {self.base_depth} is above depth {self.depth}")
        return self

    @property
    def branch(self) -> int:
        return _MOST

    def start(self, calibration: Calibration | None, context: int) -> Growth:
        return _Growth(self)


class _Growth:
    """The bounds of one request, which move with what it accepts."""

    def __init__(self, policy: Policy):
        self._policy = policy
        self._base, self._sure = float(policy.base_depth), _SURE
        self._recent: deque[float] = deque(maxlen=_HISTORY)

    @property
    def branch(self) -> int:
        return self._policy.branch

    @property
    def depth(self) -> int:
        return self._policy.depth

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        threshold = self._policy.threshold
        least = math.log(threshold) if threshold else -math.inf
        keep = [value >= least for value in log_probs]
        if not expanded:
            return keep
        counts = [self._count(math.exp(steps[0])) for steps in steps_below(tree, log_probs, expanded)]
        width = len(log_probs) // len(expanded)
        return [kept and place % width < counts[place // width] for place, kept in enumerate(keep)]

    def _count(self, confidence: float) -> int:
        """Children of a node whose likeliest child is that likely."""
        if confidence < _UNSURE:
            return _MOST
        return _FEWEST if confidence >= self._sure else _USUAL

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        def wanted(v: float, depth: int) -> bool:
            return depth < self.depth and v >= _EXPANDABLE and (depth < self._base or v > _DEEP)

        nodes = tree.nodes
        return [node for node in candidates if wanted(math.exp(nodes.log_probs[node]), nodes.depths[node])]

    def select(self, tree: TokenTree) -> list[int]:
        return tree.top(self._policy.budget)

    def observe(self, tree: TokenTree, path: Tensor) -> None:
        if tree.depth:
            self._recent.append((len(path) - 1) / tree.depth)
        if self._recent:
            step = _RATE * (sum(self._recent) / len(self._recent) - _AIM)
            self._base = min(max(self._base + step, 1.0), max(self.depth - 1.0, 1.0))
            self._sure = min(max(self._sure - step, 0.0), 1.0)
