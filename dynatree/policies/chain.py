"""A chain of `draft_tokens` tokens: linear speculation (Leviathan et al. 2023, 2211.17192) as a tree of branch 1."""

from pydantic import Field

from dynatree.policies import GrowthPolicy


class Policy(GrowthPolicy):
    """Keeps the likeliest child of the last node, `draft_tokens` times."""

    draft_tokens: int = Field(ge=0)

    @property
    def branch(self) -> int:
        return 1

    @property
    def depth(self) -> int:
        return self.draft_tokens
