"""What computes forwards, what goes into one, and the cache of the text before it: the seam of the engine."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dynatree.engine.fusion import Fusion
from dynatree.tree import TokenTree

# What a backend takes in place of the model's own head.
Head = Any

# Called before a forward, and behind it with what tells the bytes of its caches: of slots in use, and of all that is
# held. Behind a head of its own a drafter's forward ends a second time, with nothing to tell.
Begin = Callable[[], None]
End = Callable[[Callable[[], tuple[int, int]] | None], None]


class Cache(Protocol):
    """Keys and values of one sequence."""

    @property
    def length(self) -> int:
        """Slots in use: committed tokens plus what forwards appended and nobody kept or cropped yet."""

    def crop(self, length: int) -> None:
        """Forget every slot from `length` on."""

    def keep(self, prefix_length: int, kept: Tensor) -> None:
        """Of the slots behind `prefix_length` keep those at offsets `kept` [m] (ascending), moved together."""


class Feed(NamedTuple):
    """What one row feeds: the arguments of `LanguageModel.forward` and `DraftModel.draft`.

    `states` [n, width]: of a model with a fusion (`Backend.join`), what the embedding of each token is joined to.
    `last`: of so many last tokens alone logits are wanted; 0: of all.
    `tree`: in place of positions and mask, where the tokens are nodes of it. `nodes`: those that stand behind the text
    then, of which the last are fed, in a tree whose root ends the text; None: all of them are fed, the root, too.
    """

    tokens: Tensor
    cache: Cache
    positions: Tensor | None = None
    mask: Tensor | None = None
    last: int = 0
    states: Tensor | None = None
    tree: TokenTree | None = None
    nodes: Sequence[int] | None = None

    @property
    def wanted(self) -> int:
        """Of how many of its last tokens logits are wanted."""
        return min(self.last or len(self.tokens), len(self.tokens))

    def spelled_out(self) -> "Feed":
        """The same with positions and a mask in place of a tree."""
        if self.tree is None:
            return self
        nodes = [*range(len(self.tree))] if self.nodes is None else [*self.nodes]
        new = nodes[-len(self.tokens) :]
        prefix = self.cache.length - (len(nodes) - len(new))
        columns = [*range(prefix), *(prefix + node for node in nodes)]
        mask = self.tree.attention_mask(prefix)[new][:, columns]
        positions = self.tree.positions(self.root_at(prefix))[new]
        return self._replace(positions=positions, mask=mask, tree=None, nodes=None)

    def root_at(self, prefix: int) -> int:
        """The position of the tree's root, where `prefix` tokens of text are in the cache."""
        return prefix if self.nodes is None else prefix - 1


# Where nobody reads.
NO_STATES = torch.empty(0, 0)


class Output(NamedTuple):
    """What comes of one feed: `logits` [n, v], or of its `last` tokens; the `states` that are read, of all tokens.

    `states` [n, reads * width] float32: hidden states behind the layers that were asked for, side by side.
    """

    logits: Tensor
    states: Tensor = NO_STATES


class Backend(Protocol):
    """Forwards of one model: by torch (eager/), or by a graph (graph/)."""

    device: torch.device

    def new_caches(self, count: int) -> Sequence[Cache]:
        """Empty caches of `count` sequences that one forward may append to."""

    def begin(self, requests: int) -> None:
        """So many requests are about to be decoded together, with new caches or with one of before."""

    def join(self, fusion: Fusion) -> None:
        """From now on join the embedding of each token to a state, as `fusion` does, before the first layer."""

    def expose(self, layers: Sequence[int]) -> None:
        """Make at once what gives the states behind so many `layers`, besides those of before."""

    def forward(
        self, feeds: Sequence[Feed], head: Head | None = None, reads: Sequence[int] = (), lent: bool = False
    ) -> list[Output]:
        """What comes of each of `feeds`; `head`: what takes the place of the model's own.

        `reads`: behind so many layers, each from 1 to all of them, the states are given. `lent`: logits may lie where
        the next forward writes, and are not to be changed.
        """

    def score(self, tokens: Tensor, last: int) -> Tensor:
        """Logits [last, vocabulary] of the `last` tokens of `tokens` [n]."""

    def watched(self, begin: Begin, end: End, head: Head | None = None) -> AbstractContextManager[None]:
        """Within, `begin` and `end` are called around each forward, and `end` behind `head`, too."""

    def weights(self, head: Head | None = None) -> dict[Any, int]:
        """Bytes of each of the weights that it computes with, and of `head`; what others hold, too, has one key."""


def retain(caches: Sequence[Cache]) -> None:
    """Of sequences that were decoded together keep these alone, in this order; what is held of others is given back."""
    type(caches[0]).retain(caches)  # type: ignore[attr-defined]
