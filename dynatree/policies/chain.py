"""A chain of `draft_tokens` tokens: linear speculation (Leviathan et al. 2023, 2211.17192) as a tree of branch 1."""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from dynatree.policies import PolicySettings
from dynatree.tree import TokenTree


class Policy(PolicySettings):
    """Keeps the likeliest child of the last node, `draft_tokens` times.

    What lookup proposes is the whole chain where its first token is at least as likely as `threshold` (null: always);
    otherwise the drafter model makes the chain.
    """

    draft_tokens: int = Field(ge=0)  # length of the chain (K)
    threshold: float | None = Field(default=None, ge=0, le=1)  # least probability of lookup's first token; null: any

    cuts_from_above: ClassVar[bool] = True

    @property
    def branch(self) -> int:
        return 1

    @property
    def depth(self) -> int:
        return self.draft_tokens

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        refused = self.threshold and not expanded and log_probs[0] < math.log(self.threshold)
        return [not refused] * len(log_probs)

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        # The root is not expanded where lookup's chain stands already.
        return [] if len(tree) > 1 and candidates[0] == 0 else [*candidates]
