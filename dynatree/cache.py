"""Preallocated keys and values behind transformers' cache interface: append, keep a path by gathering, crop.

Knows nothing of trees: a path is a tensor of slot numbers. One row; slots behind `length` are never seen again.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):
    """Keys and values [1, heads, capacity, head size] of one layer; the first `length` slots are in use."""

    is_sliding = False
    initial_capacity = 256
    keys: Tensor
    values: Tensor

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_empty(*key_states.shape[:2], self.initial_capacity, key_states.shape[3])
        self.values = value_states.new_empty(*value_states.shape[:2], self.initial_capacity, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self._grow(end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, wanted: int) -> None:
        # Doubling keeps the copying linear in the final length.
        capacity = max(wanted, 2 * self.keys.shape[2])
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class KeyValueCache:
    """The keys and values of one sequence. `states` is what the transformers forward takes as `cache`."""

    def __init__(self) -> None:
        self.states = Cache(layer_class_to_replicate=_Layer)

    @property
    def length(self) -> int:
        """Slots in use: committed tokens plus what the last forward appended and nobody cropped yet."""
        return self.states.get_seq_length()

    @property
    def _layers(self) -> list[_Layer]:
        return cast(list[_Layer], self.states.layers)

    def crop(self, length: int) -> None:
        """Forget every slot from `length` on, without copying."""
        for layer in self._layers:
            layer.length = length

    @torch.inference_mode()
    def keep(self, prefix_length: int, kept: Tensor) -> None:
        """Of the slots behind `prefix_length` keep those at offsets `kept` [m] (ascending), moved together.

        K[..., P : P+m, :] = K[..., P + kept, :] in every layer; no copy if the path is contiguous already.
        """
        end = prefix_length + len(kept)
        if not torch.equal(kept, torch.arange(len(kept))):
            for layer in self._layers:
                slots = (kept + prefix_length).to(layer.keys.device)
                # Indexing makes a copy first, so overlapping source and destination are safe.
                layer.keys[:, :, prefix_length:end] = layer.keys[:, :, slots]
                layer.values[:, :, prefix_length:end] = layer.values[:, :, slots]
        self.crop(end)

    def bytes(self) -> tuple[int, int]:
        """(bytes of the slots in use, bytes of the tensors held)."""
        return state_bytes(self.states)


def state_bytes(states: Cache) -> tuple[int, int]:
    """(bytes of the slots in use, bytes of the storage held) of keys and values, ours or transformers' own."""
    used = allocated = 0
    for layer in cast(list[_Layer], states.layers):  # or their own with the same three members
        for tensor in (layer.keys, layer.values):
            # What transformers cropped is a view of what it holds.
            allocated += tensor.untyped_storage().nbytes()
            used += tensor.nbytes // tensor.shape[2] * layer.get_seq_length()
    return used, allocated
