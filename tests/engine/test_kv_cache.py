"""The cache against plain tensors: gathering, cropping, growing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynatree.engine.eager.kv_cache import KeyValueCache, state_bytes
from tests.conftest import Build

HEADS, SIZE, LAYERS = 2, 3, 2


def append(cache: KeyValueCache, count: int, start: int) -> None:
    """Append `count` slots to each layer; slot s of layer l holds s + 1000 l, its value the negative."""
    slots = torch.arange(start, start + count).float()
    KeyValueCache.place([cache], [count])
    for layer in range(LAYERS):
        keys = (slots + 1000 * layer)[None, None, :, None].expand(1, HEADS, count, SIZE)
        cache.states.update(keys, -keys, layer)


def contents(cache: KeyValueCache) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys[:, :, : cache.length], layer.values[:, :, : cache.length]) for layer in cache.states.layers]


def assert_holds(cache: KeyValueCache, slots: list[int]) -> None:
    assert cache.length == len(slots)
    for layer, (keys, values) in enumerate(contents(cache)):
        expected = (torch.tensor(slots).float() + 1000 * layer)[None, None, :, None].expand(1, HEADS, -1, SIZE)
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)


@given(st.integers(0, 8), st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 3))
def test_keep_moves_exactly_the_kept_slots(prefix: int, choice: list[bool], more: int) -> None:
    """Guards against overlapping copies, and against keys moved without their values or in the first layer only."""
    cache = KeyValueCache()
    append(cache, prefix + len(choice), 0)
    kept = [offset for offset, keep in enumerate(choice) if keep]
    cache.keep(prefix, torch.tensor(kept, dtype=torch.long))
    expected = [*range(prefix), *(prefix + offset for offset in kept)]
    assert_holds(cache, expected)
    if more:
        append(cache, more, 500)
        assert_holds(cache, [*expected, *range(500, 500 + more)])


@pytest.mark.parametrize(
    "sizes", [[1, 255, 1, 1], [1, 256, 1], [300, 256, 1], [300, 257, 300], [1, 255, 256, 600], [200, 256, 229]]
)
def test_growth_keeps_what_was_stored(sizes: list[int]) -> None:
    """Guards against slots lost when the preallocated tensors are replaced, at and around the capacity."""
    cache, total = KeyValueCache(), 0
    for size in sizes:
        append(cache, size, total)
        total += size
        assert_holds(cache, list(range(total)))


def test_cropped_slots_are_overwritten_not_seen() -> None:
    """Guards against a stale tail."""
    cache = KeyValueCache()
    append(cache, 5, 0)
    cache.crop(2)
    assert_holds(cache, [0, 1])
    append(cache, 1, 70)
    assert_holds(cache, [0, 1, 70])


def test_an_empty_cache_can_be_measured_and_cropped() -> None:
    """Guards against work on layers that the first forward has yet to create."""
    cache = KeyValueCache()
    cache.crop(0)
    cache.keep(0, torch.empty(0, dtype=torch.long))
    assert (cache.length, state_bytes(cache.states)) == (0, (0, 0))


def test_bytes_in_use_follow_the_length_and_bytes_held_do_not(target: Build) -> None:
    """Guards against memory figures that count the preallocation as use."""
    cache = KeyValueCache()
    target().forward(torch.arange(5), cache)
    used, held = state_bytes(cache.states)
    heads, head_size, layers = 2, 8, 2
    assert used == 2 * layers * heads * head_size * 5 * 8
    assert held > used
    cache.crop(1)
    assert state_bytes(cache.states) == (used // 5, held)
