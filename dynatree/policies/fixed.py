"""The full `branch`-ary tree of `depth` levels, breadth first, cut at `budget` nodes.

Source: SpecInfer (Miao et al., ASPLOS 2024, 2305.09781), section 3, static expansion.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from dynatree.policies import PolicySettings
from dynatree.tree import TokenTree

_MOST_NODES = 1024


class Policy(PolicySettings):
    """Keeps every child until the tree has `budget` nodes (None: no limit), the root apart."""

    depth: int = Field(ge=0, le=64)  # levels (D)
    branch: int = Field(ge=1, le=64)  # children of each node (B)
    budget: int | None = Field(ge=0, le=_MOST_NODES)  # most nodes (N), breadth first, the root apart; null: no limit

    cuts_from_above: ClassVar[bool] = True

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.budget is None and sum(self.branch**level for level in range(1, self.depth + 1)) > _MOST_NODES:
            raise ValueError(
                f"budget null allows {self.branch}^{self.depth} leaves and more; set it, at most {_MOST_NODES}"
            )
        return self

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        room = len(log_probs) if self.budget is None else self.budget - (len(tree) - 1)
        return [place < room for place in range(len(log_probs))]

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        return [*candidates] if self.budget is None or len(tree) - 1 < self.budget else []
