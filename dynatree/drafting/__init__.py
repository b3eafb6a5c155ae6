"""Drafters: who proposes what the trees grow by.

A drafter is one file with `MODEL`, whether it takes a draft model ("unused", "optional" or "required"), and a class
`Drafter` of (draft model or None, step rates or None, draft noise), a `Drafter` as below.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.growth import Growth
from dynatree.generation.request import Request
from dynatree.generation.sampling import Draw
from dynatree.tree import TokenTree


class Drafter(Protocol):
    """The draft state of requests that are decoded together: it owns the draft model, its caches and its counts."""

    def start(self, requests: Sequence[Request]) -> None:
        """What happens to a request depends on no other, but for the one that it `follows`, whose keys and values may
        be kept. Others may have begun before, and go on."""

    def propose(self, requests: Sequence[Request], planner: BatchPlanner) -> list[TokenTree]:
        """A tree below the last committed token of each of `requests`, grown as its growth in `planner` decides.

        One draft forward a level, over all requests whose trees still grow.
        """

    def forwards(self, request: Request) -> int:
        """Draft forwards of the last `propose` that `request` took part in."""

    @property
    def learns(self) -> bool:
        """Whether it makes anything of what the target says in this round."""

    def learn(self, request: Request, tree: TokenTree, path: Tensor, logits: Tensor) -> None:
        """Asked where it `learns`: what the target says of the nodes of the verified `tree`, of which those of `path`
        are about to be accepted: its `logits` [nodes, vocabulary], before any processor. They are freed afterwards.
        """

    def accept(self, request: Request, tree: TokenTree, path: Tensor) -> None:
        """Of the verified `tree` of `request` the nodes `path` [1 + accepted] were accepted, root first."""

    def retain(self, requests: Sequence[Request]) -> None:
        """The requests that go on; what is held of others is given back."""


class DrawingDrafter(Drafter, Protocol):
    """A drafter all of whose proposals are drawn from a distribution, where its draft noise is independent."""

    def draws(self, request: Request) -> Mapping[int, Draw]:
        """By node of the last tree proposed to `request`: what was drawn below it. Nodes not drafted below: none."""


def most_levels(request: Request, growth: Growth) -> int:
    """Levels that a tree may have: a round emits one token more than the path it accepts."""
    return min(growth.depth, request.remaining - 1)
