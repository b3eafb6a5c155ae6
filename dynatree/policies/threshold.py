"""DynaTree's growth: top-`branch` children down to `depth`, kept while likely enough, the best `budget` verified.

A child is kept iff its path probability v >= `threshold` (tau); of the tree the best `budget` (N) nodes by v are
verified. Global top-N by v: EAGLE-2 (Li et al., EMNLP 2024, 2406.16858), OPT-Tree (Wang et al., TACL 2025, 2406.17276).
"""

import math
from collections.abc import Sequence
from heapq import nlargest
from typing import ClassVar, Self

from pydantic import Field, model_validator

from dynatree.policies import PolicySettings
from dynatree.tree import TokenTree


class Policy(PolicySettings):
    """`threshold` None: no pruning; `budget` None: no node limit; with `branch` > 1 not both."""

    depth: int = Field(ge=0, le=127)  # most levels (D)
    branch: int = Field(ge=1, le=64)  # most children of a node (B)
    threshold: float | None = Field(ge=0, le=1)  # least path probability of a node (tau); null: any
    budget: int | None = Field(ge=0, le=1024)  # most nodes verified (N), the root apart; null: no limit

    cuts_from_above: ClassVar[bool] = True

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.branch > 1 and self.budget is None and not self.threshold:
            raise ValueError(
                f"threshold {self.threshold} and budget null leave {self.branch}^{self.depth} nodes; set one of them"
            )
        return self

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        least = math.log(self.threshold) if self.threshold else -math.inf
        pool = [*tree.nodes.log_probs[1:], *log_probs]
        if self.budget is not None and len(pool) > self.budget:
            # Below the best N of all so far a node can never be selected; dropping it now bounds the tree. (What lookup
            # proposed too counts twice: the tree may then stay a node smaller.)
            least = max(least, nlargest(self.budget, pool)[-1]) if self.budget else math.inf
        return [value >= least for value in log_probs]

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        # A node outside the best N so far stays outside with all its descendants: v never rises along a path.
        best = {*tree.top(self.budget)}
        return [node for node in candidates if node in best]

    def select(self, tree: TokenTree) -> list[int]:
        return tree.top(self.budget)
