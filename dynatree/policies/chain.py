"""A chain of `draft_tokens` tokens: linear speculation (Leviathan et al. 2023, 2211.17192) as a tree of branch 1."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dynatree.tree import TokenTree


class Policy(BaseModel):
    """Keeps the likeliest child of the last node, `draft_tokens` times."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    draft_tokens: int = Field(ge=0)

    @property
    def branch(self) -> int:
        return 1

    @property
    def depth(self) -> int:
        return self.draft_tokens

    def children(self, tree: TokenTree, log_probs: Tensor) -> Tensor:
        return torch.ones(len(log_probs), dtype=torch.bool)

    def frontier(self, tree: TokenTree, new: Tensor) -> Tensor:
        return new

    def select(self, tree: TokenTree) -> Tensor:
        return torch.arange(len(tree))
