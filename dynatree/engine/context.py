"""Successors in context: what a target's state says of which usual successors of a token fit the text before it.

A table (successors.py) knows a token alone. Here a small network reads the target's state at the position before the
token, and the token, and adds a number to the table's log-probability of each successor. Below that, where the target
has computed nothing, it goes on from its own hidden state. It takes no forward: a few products of vectors.

Sources: heads that draft from the target's last state (Medusa, Cai et al. 2024, 2401.10774), that go by the tokens
drafted before (Hydra, Ankner et al. 2024, 2402.05109), recurrently (ReDrafter, Cheng et al. 2024, 2403.09919).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynatree.engine.graph.kernels.rows import Known, rows

Array = NDArray[np.float32]
# Random numbers of 32 bits, one a token.
Words = NDArray[np.uint32]

# Tokens among which those are looked for that a row does not have: as many as are usual enough to be drawn.
COMMON = 8192
# Rows of an embedding that are multiplied at once.
_ROWS = 4096


class Context(NamedTuple):
    """Weights in float32, of a target of width w with v tokens; h is the width of the hidden state, r the rank of what
    it says of successors, l the levels of a tree that it was trained for."""

    state: Array  # [h, w] of the target's normed state
    state_bias: Array  # [h]
    token: Array  # [h, w] of the token's normed embedding
    deeper: Array  # [l - 1, h, h] of the hidden state a level above
    deeper_bias: Array  # [l - 1, h]
    hidden: Array  # [r, h]
    successor: Array  # [r, w] of a successor's normed embedding
    usual: Array  # [v] log-probability of each token, whatever stands before it
    unseen: Array  # [v] what is to be added to it behind each token, for one that is not in the token's row

    @property
    def width(self) -> int:
        """Of the target's states."""
        return int(self.state.shape[-1])

    def misfit(self, vocabulary: int) -> str | None:
        """Which of the weights is not of the size that the others and the `vocabulary` say; None: all are."""
        h, w = self.state.shape if self.state.ndim == 2 else (0, 0)
        r, below = (part.shape[0] if part.ndim else 0 for part in (self.successor, self.deeper))
        sizes = ((h, w), (h,), (h, w), (below, h, h), (below, h), (r, h), (r, w), (vocabulary,), (vocabulary,))
        for name, part, size in zip(self._fields, self, sizes, strict=True):
            if part.shape != size or (not part.size and not name.startswith("deeper")):
                return f"{name} is {[*part.shape]}, expected {[*size]}"
        return None


class InContext:
    """A context with the `embedding` [v, w] of its target: vectors of tokens are multiplied once."""

    def __init__(self, context: Context, embedding: Tensor):
        self.levels, self.width = 1 + len(context.deeper), context.width
        self._weights = context
        # In half precision: they are large, and of a few rows at a time.
        self._tokens, self._successors = (_products(embedding, part) for part in (context.token, context.successor))
        # In order: so they lie side by side in what is looked through.
        self.common = np.sort(np.argsort(-context.usual, kind="stable")[:COMMON])
        self._usual = context.usual[self.common]
        self._marked = np.zeros(len(context.usual), dtype=bool)
        # Where there is one; it gives the same to within rounding.
        self._library = rows()
        # In half precision, as a file has them.
        self._state, self._deeper, said = (
            part.astype(np.float16, order="C") for part in (context.state, context.deeper, context.hidden)
        )
        held = self._successors, said, np.ascontiguousarray(context.usual), self.common.astype(np.int32)
        self._held = held  # as long as its addresses are known
        self._known = Known(*(part.ctypes.data for part in held), *context.hidden.shape, len(self.common))

    def hidden(self, state: Array, token: int) -> Array:
        """The hidden state [h] at the root, which is `token`, behind the target's `state` [w]."""
        if self._library:
            weights = self._weights
            state = np.ascontiguousarray(state, np.float32)
            return self._library.hidden(self._state, weights.state_bias, self._tokens[token], state, _EPS)
        # By a product: a mean of squares takes four steps, each out of the processor's caches.
        normed = state * np.float32(1 / math.sqrt(float(state @ state) / len(state) + _EPS))
        return self._at(self._weights.state @ normed + self._weights.state_bias, token)

    def deeper(self, hidden: Array, level: int, token: int) -> Array:
        """The same at `token`, behind the `hidden` state of its parent at this `level`: 0 is the root."""
        weights = self._weights
        if self._library:
            return self._library.hidden(self._deeper[level], weights.deeper_bias[level], self._tokens[token], hidden)
        return self._at(weights.deeper[level] @ hidden + weights.deeper_bias[level], token)

    def _at(self, before: Array, token: int) -> Array:
        found = before + self._tokens[token]
        silu: Array = found / (1 + np.exp(-found))
        return silu

    def row(
        self,
        token: int,
        ids: NDArray[np.int64],
        scores: Array,
        hidden: Array,
        words: Words | None = None,
        most: Words | None = None,
    ) -> tuple[NDArray[np.int64], Array]:
        """The row `ids` [k] with log-probabilities `scores` [k] behind `token`, as the `hidden` state there has it, and
        together as likely as before.

        With the random `words` [v] of the position behind it, what noise prefers stands beside the row: of what is
        `common` the tokens whose words are at `most` [c].
        """
        if self._library:
            return self._library.row(self._known, hidden, ids, scores, words, most, float(self._weights.unseen[token]))
        if words is not None and most is not None:
            further, less = self.beside(token, ids, self.common[words[self.common] <= most])
            ids, scores = np.concatenate([ids, further]), np.concatenate([scores, less])
        added = self._successors[ids].astype(np.float32) @ (self._weights.hidden @ hidden)
        read = scores + added
        together: Array = np.logaddexp.reduce(scores) - np.logaddexp.reduce(read)
        return ids, read + together

    def preferring(self, temperature: float, few: int) -> Array:
        """The noise that each of what is `common` needs to be among about `few` tokens that are drawn first, whatever
        stands before.

        A token's log-probability plus its noise is above t with so many others on average as e to the -t.
        """
        scores = self._usual / temperature
        needed: Array = np.logaddexp.reduce(scores) - math.log(few) - scores
        return needed

    def beside(self, token: int, ids: NDArray[np.int64], further: NDArray[np.int64]) -> tuple[NDArray[np.int64], Array]:
        """Those of `further` that are not among the `ids` of the row of `token`, and their log-probabilities there."""
        self._marked[ids] = True
        others = further[~self._marked[further]]
        self._marked[ids] = False
        found: Array = self._weights.usual[others] + self._weights.unseen[token]
        return others, found


_EPS = float(torch.finfo(torch.float32).eps)


def normed(vectors: Tensor) -> Tensor:
    """`vectors` [..., w] of mean square 1."""
    return torch.nn.functional.rms_norm(vectors.float(), vectors.shape[-1:], eps=_EPS)


@torch.inference_mode()
def _products(embedding: Tensor, weight: Array) -> NDArray[np.float16]:
    """[v, k] of the normed rows of `embedding` [v, w] with `weight` [k, w]."""
    columns = torch.from_numpy(weight).T.to(embedding.device)
    found: NDArray[np.float16] = torch.cat(
        [(normed(part) @ columns).half().cpu() for part in embedding.split(_ROWS)]
    ).numpy()
    return found
