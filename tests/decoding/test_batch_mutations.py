"""Mistakes of batched decoding, put in on purpose: each makes a small check fail that passes without it."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager import backend
from dynatree.engine.eager.batch import Batch, Feed, collate
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from tests.conftest import Build, Drafts
from tests.decoding.test_batches import PROMPTS, assert_rows_are_their_own

Patch = pytest.MonkeyPatch


def assert_exact(target: LanguageModel, drafter: DraftModel) -> None:
    for method in ("fixed", "hybrid", "autoregressive"):
        assert_rows_are_their_own(method, target, drafter, PROMPTS, 24)


def changed(patch: Patch, change: Callable[[Sequence[Feed], Batch], Batch]) -> None:
    """Let every forward over several rows take what `change` makes of its batch."""
    patch.setattr(backend, "collate", lambda feeds: change(feeds, collate(feeds)))


def stale_columns_visible(patch: Patch) -> None:
    def change(feeds: Sequence[Feed], batch: Batch) -> Batch:
        if batch.mask is not None:
            for mask, feed in zip(batch.mask, feeds, strict=True):
                mask[:, feed.cache.length + batch.tokens.shape[1] :] = True
        return batch

    changed(patch, change)


def padding_visible(patch: Patch) -> None:
    def change(feeds: Sequence[Feed], batch: Batch) -> Batch:
        if batch.mask is not None:
            for mask, feed in zip(batch.mask, feeds, strict=True):
                mask[:, feed.cache.length + len(feed.tokens) : feed.cache.length + batch.tokens.shape[1]] = True
        return batch

    changed(patch, change)


def positions_of_the_longest_row(patch: Patch) -> None:
    def change(feeds: Sequence[Feed], batch: Batch) -> Batch:
        lengths = torch.tensor([feed.cache.length for feed in feeds])
        return batch._replace(positions=batch.positions + (lengths.max() - lengths)[:, None])

    changed(patch, change)


def slots_of_the_longest_row(patch: Patch) -> None:
    def change(feeds: Sequence[Feed], batch: Batch) -> Batch:
        if batch.columns is None:
            return batch
        lengths = torch.tensor([feed.cache.length for feed in feeds])
        return batch._replace(columns=batch.columns + (lengths.max() - lengths)[:, None])

    changed(patch, change)


def padded_on_the_right(patch: Patch) -> None:
    def change(feeds: Sequence[Feed], batch: Batch) -> Batch:
        for row, feed in enumerate(feeds):
            shift = len(feed.tokens)
            for part in (batch.tokens, batch.positions, batch.mask, batch.columns):
                if part is not None:
                    part[row] = part[row].roll(shift, 0)
        return batch

    changed(patch, change)


def gathered_from_another_row(patch: Patch) -> None:
    @torch.inference_mode()
    def keep(cache: KeyValueCache, prefix: int, kept: Tensor) -> None:
        for layer in cache.states.layers:
            for held in (layer.keys, layer.values):
                held[cache._row, :, prefix : prefix + len(kept)] = held[cache._row - 1][:, prefix + kept]
        cache.crop(prefix + len(kept))

    patch.setattr(KeyValueCache, "keep", keep)


def retained_rows_in_another_order(patch: Patch) -> None:
    real = KeyValueCache.retain

    def retain(caches: Sequence[KeyValueCache]) -> None:
        real(caches)
        for layer in caches[0].states.layers:
            layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)

    patch.setattr(KeyValueCache, "retain", retain)


def logits_of_another_row(patch: Patch) -> None:
    real = LanguageModel.forward_batch
    patch.setattr(LanguageModel, "forward_batch", lambda *given, **more: real(*given, **more)[::-1])


MISTAKES = [
    stale_columns_visible,
    padding_visible,
    positions_of_the_longest_row,
    slots_of_the_longest_row,
    padded_on_the_right,
    gathered_from_another_row,
    retained_rows_in_another_order,
    logits_of_another_row,
]


def test_the_check_passes_without_a_mutant(target: Build, drafter: Drafts) -> None:
    """Guards against mutants that are 'caught' by a check which always fails."""
    assert_exact(target(), drafter("related"))


@pytest.mark.parametrize("mutant", MISTAKES, ids=lambda mutant: mutant.__name__)
def test_a_mistake_between_rows_changes_an_output_or_a_trace(
    target: Build, drafter: Drafts, monkeypatch: Patch, mutant: Callable[[Patch], None]
) -> None:
    """Guards against a suite of batches too tame to notice."""
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        assert_exact(target(), drafter("related"))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=2, max_size=4))
def test_a_batch_shows_each_token_its_own_row_and_padding_itself(rows: list[tuple[int, int]]) -> None:
    """Guards the layout: slots written once a row, a column for every token, softmax never over nothing."""
    caches = KeyValueCache.rows(len(rows))
    for cache, (length, _) in zip(caches, rows, strict=True):
        cache.crop(length)
    feeds = [Feed(torch.arange(1, n + 1), cache) for cache, (_, n) in zip(caches, rows, strict=True)]
    batch = collate(feeds)
    n = batch.tokens.shape[1]
    if batch.mask is None:
        assert len(set(rows)) == 1 and batch.columns is None
        return
    assert batch.mask.any(2).all() and batch.mask.shape[2] == max(length for length, _ in rows) + n
    for row, (length, count) in enumerate(rows):
        slots = batch.columns[row] if batch.columns is not None else torch.arange(length, length + n)
        assert slots[n - count :].tolist() == [*range(length, length + count)]
        assert sorted(slots.tolist()) == [*range(length, length + n)]
        assert batch.positions[row, n - count :].tolist() == [*range(length, length + count)]
        for place in range(n):
            seen = batch.mask[row, place].nonzero().flatten().tolist()
            own = int(slots[place])
            assert seen == ([*range(own + 1)] if place >= n - count else [own])
