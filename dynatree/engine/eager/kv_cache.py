"""Preallocated keys and values behind transformers' cache interface: append, keep a path by gathering, crop.

Knows nothing of trees: a path is a tensor of slot numbers. Sequences decoded together share tensors, a row each, and
each appends behind its own length; slots behind a row's length are never seen again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Place(NamedTuple):
    """Where a forward's new keys and values go, and what it sees: the first `end` slots of `rows`.

    `slots`: row [b, 1] and column [b, n] of each token. None: those from `start` to `end`, in every row.
    """

    rows: slice | Tensor
    slots: tuple[Tensor, Tensor] | None
    start: int
    end: int


class _Rows:
    """What all layers of a cache share: the length of each row, and where the forward under way appends."""

    def __init__(self, count: int):
        self.lengths = [0] * count
        self.place = Place(slice(0, count), None, 0, 0)
        # transformers calls it without arguments, as it would the class.
        self.states = Cache(layer_class_to_replicate=cast(type[CacheLayerMixin], partial(_Layer, self)))

    @property
    def layers(self) -> "list[_Layer]":
        return cast("list[_Layer]", self.states.layers)


class _Layer(CacheLayerMixin):
    """Keys and values [rows, heads, capacity, head size] of one layer."""

    is_sliding = False
    spare = 256  # slots, at first, behind what is appended first: a prompt, as a rule
    keys: Tensor
    values: Tensor

    def __init__(self, shared: _Rows, **_: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shared = shared
        self._stored: Place | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, capacity = len(self._shared.lengths), self._shared.place.end + self.spare
        # Zeros, since a shorter row's unused slots are masked, and a masked NaN would still be NaN.
        self.keys = key_states.new_zeros(rows, key_states.shape[1], capacity, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], capacity, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows, slots, start, end = self._shared.place
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if end > self.keys.shape[2]:
            self._grow(end)
        self._stored = self._shared.place
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            if slots is None:
                held[rows, :, start:end] = new
            else:
                held[slots[0], :, slots[1]] = new.transpose(1, 2)
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def _grow(self, wanted: int) -> None:
        # By a share of what there is: that keeps the copying linear in the final length.
        capacity = max(wanted, self.keys.shape[2] * 3 // 2)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._shared.place.end, 0

    def get_seq_length(self) -> int:
        # Behind a forward what is in use; in it, before this layer's turn, what it appends to.
        place = self._shared.place
        return max(self._shared.lengths) if self._stored is place else place.start

    def get_max_length(self) -> int:
        return -1


class KeyValueCache:
    """The keys and values of one sequence: alone, or a row of tensors that it shares with others (`rows`).

    `states` is what the transformers forward takes as `cache`, once `place` has said where its states go.
    """

    def __init__(self) -> None:
        self._shared, self._row = _Rows(1), 0

    @classmethod
    def rows(cls, count: int) -> list["KeyValueCache"]:
        """Caches of `count` sequences that one forward may append to."""
        shared, caches = _Rows(count), [cls() for _ in range(count)]
        for row, cache in enumerate(caches):
            cache._shared, cache._row = shared, row
        return caches

    @property
    def states(self) -> Cache:
        """transformers' cache of all rows."""
        return self._shared.states

    @property
    def length(self) -> int:
        """Slots in use: committed tokens plus what the last forward appended and nobody cropped yet."""
        return self._shared.lengths[self._row]

    @staticmethod
    def place(caches: Sequence["KeyValueCache"], counts: Sequence[int], columns: Tensor | None = None) -> None:
        """The next forward appends `counts` [b] tokens to `caches` [b], rows of one batch, padded to the most.

        `columns` [b, n]: the slot of each token, padding included. None: rows alike, each appends behind its length.
        """
        shared, rows = caches[0]._shared, [cache._row for cache in caches]
        assert all(cache._shared is shared for cache in caches), "one forward appends to rows of one batch"
        first, last = rows[0], rows[-1]
        together = rows == list(range(first, last + 1))
        # A slice is a view; other rows are copied for the forward, and written where they stand.
        seen = slice(first, last + 1) if together else torch.tensor(rows)
        slots = None if columns is None else (torch.tensor(rows, device=columns.device)[:, None], columns)
        start = max(shared.lengths[row] for row in rows)
        shared.place = Place(seen, slots, start, start + max(counts))
        for row, count in zip(rows, counts, strict=True):
            shared.lengths[row] += count

    @staticmethod
    @torch.inference_mode()
    def retain(caches: Sequence["KeyValueCache"]) -> None:
        """Of a batch keep the rows of `caches` alone, in that order; the others' memory is given back."""
        shared, rows = caches[0]._shared, [cache._row for cache in caches]
        shared.lengths = [shared.lengths[row] for row in rows]
        for layer in shared.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        for row, cache in enumerate(caches):
            cache._row = row

    def crop(self, length: int) -> None:
        """Forget every slot from `length` on, without copying."""
        self._shared.lengths[self._row] = length

    @torch.inference_mode()
    def keep(self, prefix_length: int, kept: Tensor) -> None:
        """Of the slots behind `prefix_length` keep those at offsets `kept` [m] (ascending), moved together.

        K[..., P : P+m, :] = K[..., P + kept, :] in every layer; no copy if the path is contiguous already.
        """
        end = prefix_length + len(kept)
        # Ascending, so the last tells whether any is left out.
        if len(kept) and int(kept[-1]) >= len(kept):
            slots = (kept + prefix_length).to(self._shared.layers[0].keys.device)
            for layer in self._shared.layers:
                for held in (layer.keys[self._row], layer.values[self._row]):
                    # Indexing makes a copy first, so overlapping source and destination are safe.
                    held[:, prefix_length:end] = held[:, slots]
        self.crop(end)


def state_bytes(states: Cache) -> tuple[int, int]:
    """(bytes of the slots in use, bytes of the storage held) of keys and values, ours or transformers' own."""
    used = allocated = 0
    for layer in cast(list[_Layer], states.layers):  # or their own with the same three members
        for tensor in (layer.keys, layer.values):
            # What transformers cropped is a view of what it holds.
            allocated += tensor.untyped_storage().nbytes()
            used += tensor.nbytes // tensor.shape[2] * layer.get_seq_length()
    return used, allocated
