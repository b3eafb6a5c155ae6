"""Rows of a table of successors as a context has them, and which logits are near the best: of our own library."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from dynatree.engine.graph import kernels

Array = NDArray[np.float32]
Halves = NDArray[np.float16]

# Tokens near the best that are given, at most.
_MOST = 4096
_ADDRESS, _COUNT, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Known(ctypes.Structure):
    """Where that is which stays of a context, as rows.hpp has it."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("successors", "hidden", "usual", "common")),
        *((name, _COUNT) for name in ("rank", "width", "count")),
    )


class Rows:
    """The functions of rows.hpp in `library`."""

    def __init__(self, library: ctypes.CDLL):
        self._hidden, self._row = library.dynatree_hidden, library.dynatree_row
        self._best, self._near = library.dynatree_best, library.dynatree_near
        self._hidden.argtypes = (*[_ADDRESS] * 4, _COUNT, _COUNT, _NUMBER, _ADDRESS)
        self._hidden.restype = None
        self._row.argtypes = (*[_ADDRESS] * 4, _NUMBER, _COUNT, _ADDRESS, _ADDRESS)
        self._row.restype = _COUNT
        self._best.argtypes = (*[_ADDRESS] * 3, *[_COUNT] * 3, _ADDRESS, _ADDRESS)
        self._best.restype = _COUNT
        self._near.argtypes = (_ADDRESS, _COUNT, _NUMBER, _ADDRESS, _COUNT)
        self._near.restype = _COUNT

    def hidden(self, weights: Halves, bias: Array, token: Halves, before: Array, eps: float = 0.0) -> Array:
        """The hidden state [h] of `weights` [h, n] by `before` [n], of root mean square 1 with `eps`, with a `bias` [h]
        and what is added of a `token` [h]; all of them side by side."""
        h, n = weights.shape
        found = np.empty(h, np.float32)
        self._hidden(
            weights.ctypes.data, bias.ctypes.data, token.ctypes.data, before.ctypes.data, h, n, eps, found.ctypes.data
        )
        return found

    def row(
        self,
        known: Known,
        hidden: Array,
        ids: NDArray[np.int64],
        scores: Array,
        words: NDArray[np.uint32] | None,
        most: NDArray[np.uint32] | None,
        unseen: float,
    ) -> tuple[NDArray[np.int64], Array]:
        """The successors `ids` [k] with `scores` [k], and behind them those of the common ones whose random `words` [v]
        are at `most`, as the `hidden` state has them."""
        kept = len(ids)
        all_ids, all_scores = (np.empty(kept + known.count, kind) for kind in (np.int64, np.float32))
        all_ids[:kept], all_scores[:kept] = ids, scores
        given = (None, None) if words is None or most is None else (words.ctypes.data, most.ctypes.data)
        place = all_ids.ctypes.data, all_scores.ctypes.data
        count = self._row(ctypes.addressof(known), hidden.ctypes.data, *given, unseen, kept, *place)
        return all_ids[:count], all_scores[:count]

    def best(
        self, scores: Array, ids: NDArray[np.int64], words: NDArray[np.uint32] | None, whole: bool, few: int
    ) -> tuple[list[int], list[float]]:
        """The `few` best of the tokens `ids` [k] by `scores` [k] and the noise of random `words` [v], best first, with
        what they have; if these are the `whole`, as log-probabilities."""
        scores = np.ascontiguousarray(scores, np.float32)
        places, found = np.empty(few, np.int64), np.empty(few, np.float32)
        noise = None if words is None else words.ctypes.data
        told = places.ctypes.data, found.ctypes.data
        count = self._best(scores.ctypes.data, ids.ctypes.data, noise, len(scores), whole, few, *told)
        return ids[places[:count]].tolist(), found[:count].tolist()

    def near(self, scores: Array, behind: float) -> NDArray[np.int64] | None:
        """The tokens, in order, whose `scores` [v] are less than so far `behind` the best; None: they are many."""
        scores, found = np.ascontiguousarray(scores, np.float32), np.empty(_MOST, np.int64)
        count = self._near(scores.ctypes.data, len(scores), behind, found.ctypes.data, _MOST)
        # A copy: it is kept, and few of so many are there.
        return found[:count].copy() if count <= _MOST else None


def rows() -> Rows | None:
    """See `kernels.functions`."""
    return kernels.functions(Rows)
