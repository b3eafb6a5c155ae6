"""Drawing in C++ (kernels/draws.hpp): of the same bits as numpy's."""

import shutil

import numpy as np
import pytest

from dynatree.engine.graph import kernels
from dynatree.engine.graph.kernels.draws import Ids, Scores, Source, Words

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
# A row of vectors or less, whole ones, and some more.
SIZES = (1, 7, 16, 48, 3_001, 49_152)


def sources(monkeypatch: pytest.MonkeyPatch, key: list[int]) -> tuple[Source, Source]:
    """One in C++, the other by numpy."""
    assert kernels.kind() == kernels.OWN
    ours = Source(np.array(key, np.uint64))
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "loaded", lambda: None)
        return ours, Source(np.array(key, np.uint64))


@needs_compiler
def test_words_are_numpy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    for size in SIZES:
        key, counter = (chance.integers(2**64, size=count, dtype=np.uint64) for count in (2, 4))
        ours, theirs = sources(monkeypatch, [*key.tolist()])
        # Nothing is left of what was made before.
        for first in (0, 0, 2**40):
            counter[0] = first
            assert np.array_equal(ours.words(counter, size), theirs.words(counter, size))


@needs_compiler
def test_what_comes_into_question_is_numpy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(1)
    ours, theirs = sources(monkeypatch, [1, 2])
    for size in SIZES * 3:
        words: Words = chance.integers(2**32, size=size, dtype=np.uint32)
        ids: Ids = chance.choice(size, -(-size // 2), replace=False)
        most: Words = chance.integers(2**32, size=len(ids), dtype=np.uint32)
        assert np.array_equal(ours.among(ids, words, most), theirs.among(ids, words, most))
        assert np.array_equal(ours.among(ids[::2], words, most[::2]), theirs.among(ids[::2], words, most[::2]))
        for scores in rows(chance, size):
            assert ours.likeliest(scores, words) == theirs.likeliest(scores, words)
            for bound in (-np.inf, -1.0, 0.1, float(scores.max()), np.inf, np.nan):
                assert np.array_equal(ours.at_least(scores, bound), theirs.at_least(scores, bound)), (size, bound)


def rows(chance: np.random.Generator, size: int) -> list[Scores]:
    """Scores by chance, many that are equal, and some that are infinite or no numbers."""
    plain: Scores = chance.standard_normal(size, dtype=np.float32)
    coarse, infinite, wrong = np.round(plain), plain.copy(), plain.copy()
    infinite[chance.integers(size)], infinite[chance.integers(size)] = -np.inf, np.inf
    wrong[chance.integers(size, size=2)] = np.nan
    return [plain, coarse, infinite, wrong, np.full(size, -np.inf, np.float32), np.repeat(plain, 2)[::2]]


def test_without_operations_it_is_numpy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards processes that have no graph: they compile nothing."""
    monkeypatch.setattr(kernels, "kind", lambda: kernels.OPENVINO)
    assert kernels.loaded() is None
