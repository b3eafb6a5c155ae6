"""Random words, and the tokens that come into question by them, of our own library: the same as numpy's, sooner."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from dynatree.engine.graph import kernels

# Tokens that are given, at most.
_MOST = 4096
# Random words of 32 bits that are made together.
_BLOCK = 8


class Drawing:
    """The functions of drawing.hpp in `library`."""

    def __init__(self, library: ctypes.CDLL):
        self._words, self._contenders = library.dynatree_words, library.dynatree_contenders
        address, count = ctypes.c_void_p, ctypes.c_int64
        self._words.argtypes, self._words.restype = (address, address, count, address), None
        self._contenders.argtypes = (address, address, count, count, ctypes.c_float, address, count)
        self._contenders.restype = count

    def words(
        self, key: NDArray[np.uint64], counter: NDArray[np.uint64], size: int, spare: NDArray[np.uint32] | None = None
    ) -> NDArray[np.uint32]:
        """The first `size` words, or a few more, of Philox by `key` [2] behind `counter` [4], as numpy's has them.

        In `spare`, an array that this gave and nobody needs, if it is of that size.
        """
        blocks = -(-size // _BLOCK)
        found = spare if spare is not None and len(spare) == blocks * _BLOCK else np.empty(blocks * _BLOCK, np.uint32)
        self._words(key.ctypes.data, counter.ctypes.data, blocks, found.ctypes.data)
        return found

    def contenders(
        self, scores: NDArray[np.float32], words: NDArray[np.uint32], likeliest: int, least: float
    ) -> NDArray[np.int64] | None:
        """The tokens, in order, that may have the largest sum of `scores` [v] and the noise of `words` [v], of those
        with a score of at least `least`; None: there are many.

        `likeliest`: that of the largest score, which is finite.
        """
        scores, found = np.ascontiguousarray(scores, np.float32), np.empty(_MOST, np.int64)
        count = self._contenders(
            scores.ctypes.data, words.ctypes.data, len(scores), likeliest, least, found.ctypes.data, _MOST
        )
        return found[:count] if count <= _MOST else None


def drawing() -> Drawing | None:
    """See `kernels.functions`."""
    return kernels.functions(Drawing)
