"""What drawing a token takes besides its forward: by numpy, or of the same bits in C++ (draws.hpp), which is faster.

In C++ where graphs have operations of our own in this process: who has none need not compile any.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from dynatree.engine.graph import kernels

Scores = NDArray[np.float32]
# Random numbers of 32 bits, one a token.
Words = NDArray[np.uint32]
Ids = NDArray[np.int64]

# Words of a counter's step: four of 64 bits.
_STEP = 8
# Places that C++ has room for; where there are more, numpy looks for them.
_ROOM = 2**14


class Source:
    """Random words by a `key` of two numbers, counter by counter (Philox, Salmon et al. 2011)."""

    def __init__(self, key: NDArray[np.uint64]):
        self._key, self._library = key, kernels.loaded()
        self._generator: Philox | None = None

    def words(self, counter: NDArray[np.uint64], size: int) -> Words:
        """So many, from the `counter` of four numbers on, which counts up in the first."""
        if self._library:
            blocks = -(-size // _STEP)
            found = np.empty(_STEP * blocks, np.uint32)
            self._library.dynatree_random_words(_at(self._key), _at(counter), blocks, _at(found))
            return found[:size]
        # One generator, told where to begin: making one takes as long as what it gives.
        generator = self._generator = self._generator or Philox(key=self._key)
        state: Any = generator.state
        state["state"]["counter"] = counter
        # Nothing is left of what was made at once.
        state["buffer_pos"], state["has_uint32"] = len(state["buffer"]), 0
        generator.state = state
        return generator.random_raw(-(-size // 2)).view(np.uint32)[:size]

    def likeliest(self, scores: Scores, words: Words) -> tuple[int, int]:
        """The first place of the greatest of `scores` [v], or of NaN, if there is any; and the least of `words` [v]."""
        if self._library and _plain(scores) and _plain(words):
            least = ctypes.c_uint32()
            place = self._library.dynatree_likeliest(_at(scores), _at(words), len(scores), ctypes.byref(least))
            return place, least.value
        return int(scores.argmax()), int(words.min())

    def at_least(self, scores: Scores, bound: float) -> NDArray[Any]:
        """The places of `scores` [v] of at least `bound`, ascending."""
        if self._library and _plain(scores):
            found = np.empty(min(len(scores), _ROOM), np.int32)
            count = self._library.dynatree_at_least(_at(scores), len(scores), bound, len(found), _at(found))
            if count <= len(found):
                return found[:count]
        return (scores >= bound).nonzero()[0]

    def among(self, ids: Ids, words: Words, most: Words) -> Ids:
        """Those of `ids` [k] whose `words` [v] are at `most` [k]."""
        if self._library and _plain(ids) and _plain(words) and _plain(most):
            found = np.empty(len(ids), np.int64)
            return found[: self._library.dynatree_among(_at(ids), _at(most), len(ids), _at(words), _at(found))]
        return ids[words[ids] <= most]


def _plain(array: NDArray[Any]) -> bool:
    return array.flags.c_contiguous


def _at(array: NDArray[Any]) -> int:
    return array.ctypes.data
