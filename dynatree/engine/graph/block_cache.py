"""Keys and values of one sequence in blocks of 256 positions: full ones, the current one, and nodes not kept yet.

That a node's sums come out the same to the bit whatever stands beside it rests on this: full blocks are one product,
the current block and new nodes another, each summed in order of its positions, and no path crosses the end of a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 256
# Longer products, over the current block and nodes behind it, are summed in parts, whose ends depend on the length.
MOST = 512
# Columns that the values have besides their own: the first is of ones and sums up the weights of attention.
EXTRA = 16

# Keys and values.
Buffers = tuple[Tensor, Tensor]


class BlockCache:
    """`full`: keys [layers, heads, f, size] and values [layers, heads, f, size + EXTRA] of the first `done` = f
    positions, whole blocks; `block`: the same of the current one: committed tokens, and nodes that are not kept yet.
    It has the size of a block, or as much more as there are nodes that do not fit.
    """

    def __init__(self, layers: int, heads: int, size: int):
        self._shape = layers, heads, size
        self.full, self.block = self._buffers(0), self._buffers(BLOCK)
        self._own = self.block
        self.done = self.committed = self.length = 0

    def _buffers(self, positions: int) -> Buffers:
        layers, heads, size = self._shape
        keys = torch.zeros(layers, heads, positions, size)
        values = torch.zeros(layers, heads, positions, size + EXTRA)
        values[..., size] = 1
        return keys, values

    @property
    def room(self) -> int:
        """Levels that a tree below the next token may have: no path crosses the end of a block."""
        return BLOCK - 1 - self.committed % BLOCK

    @property
    def nodes_left(self) -> int:
        """Nodes that still fit behind what the block holds; of a block that has room, as if it were full."""
        return MOST - self.block[0].shape[2]

    def left(self, length: int) -> int:
        """Tokens that the block still takes behind `length` committed ones, or the next block where it is full."""
        return BLOCK - length % BLOCK

    def append(self, keys: Tensor, values: Tensor, committed: bool) -> None:
        """Further `keys` [layers, heads, n, size] and `values` [layers, heads, n, size + EXTRA]: `committed`, which do
        not pass the end of the block, or nodes.
        """
        at, count = self.length - self.done, keys.shape[2]
        fit = max(0, min(count, BLOCK - at))
        for own, new in zip(self._own, (keys, values), strict=True):
            own[:, :, at : at + fit] = new[:, :, :fit]
        if fit < count:
            keys_left, values_left = keys[:, :, fit:], values[:, :, fit:]
            self.block = torch.cat([self.block[0], keys_left], 2), torch.cat([self.block[1], values_left], 2)
        self.length += count
        if committed:
            assert self.committed + count == self.length and fit == count, "committed tokens follow committed tokens"
            self.committed = self.length

    def settle(self) -> None:
        """Let a current block that is full of committed tokens join the others."""
        if self.committed - self.done < BLOCK:
            return
        assert self.length == self.committed, "nodes below a full block"
        full = [torch.cat(pair, 2) for pair in zip(self.full, self._own, strict=True)]
        self.full, self.done = (full[0], full[1]), self.committed

    def crop(self, length: int) -> None:
        """Forget every slot from `length` on."""
        if length < self.done:
            self.done = length // BLOCK * BLOCK
            for own, full in zip(self._own, self.full, strict=True):
                own.copy_(full[:, :, self.done : self.done + BLOCK])
            self.full = self.full[0][:, :, : self.done].clone(), self.full[1][:, :, : self.done].clone()
        self._shrink(length - self.done)
        self.length, self.committed = length, min(self.committed, length)

    def _shrink(self, used: int) -> None:
        """Hold no more slots behind the block's end than the first `used` need."""
        if self.block is not self._own:
            wide = max(used, BLOCK)
            self.block = (self.block[0][:, :, :wide].contiguous(), self.block[1][:, :, :wide].contiguous())
            self.block = self._own if wide == BLOCK else self.block

    def keep(self, prefix_length: int, kept: Tensor) -> None:
        """Of the slots behind `prefix_length` keep those at offsets `kept` [m] (ascending), moved together."""
        assert self.done <= prefix_length <= self.committed, "nodes stand in or behind the current block"
        if not len(kept) or int(kept[-1]) == len(kept) - 1:
            # The first ones, as of a chain, stand where they are to stand.
            self.crop(prefix_length + len(kept))
            self.committed = self.length
            return
        slots = kept + (prefix_length - self.done)
        keys, values = self.block[0][:, :, slots], self.block[1][:, :, slots]
        self.crop(prefix_length)
        self.append(keys, values, committed=True)

    def sizes(self) -> tuple[int, int]:
        """Bytes of the slots in use, and of all that are held."""
        layers, heads, size = self._shape
        held = {tensor.data_ptr(): tensor.nbytes for tensor in (*self.full, *self._own, *self.block)}
        return self.length * layers * heads * (2 * size + EXTRA) * self._own[0].itemsize, sum(held.values())

    @staticmethod
    def retain(caches: Sequence["BlockCache"]) -> None:
        """Each sequence has tensors of its own: nothing is held of those that left."""
