"""Keys and values of one sequence in blocks of 256 positions: full ones, the current one, and nodes not kept yet.

That a node's sums come out the same to the bit whatever stands beside it rests on this: full blocks are one product,
the current block and new nodes another, each summed in order of its positions, and no path crosses the end of a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 256
# Columns that the values have besides their own: the first is of ones and sums up the weights of attention.
EXTRA = 16


class BlockCache:
    """`full`: keys [layers, heads, f, size] and values [layers, heads, f, size + EXTRA], f a multiple of a block and at
    least one; `block`: the same of the current one. The first `done` positions stand in `full`.
    """

    def __init__(self, layers: int, heads: int, size: int):
        self._shape = layers, heads, size
        self.full, self.block = self._buffers(BLOCK), self._buffers(BLOCK)
        self.done = self.committed = 0
        self._pending: list[tuple[Tensor, Tensor]] = []
        self.version = 0  # changes where `full` or `block` are other tensors

    def _buffers(self, positions: int) -> tuple[Tensor, Tensor]:
        layers, heads, size = self._shape
        keys = torch.zeros(layers, heads, positions, size)
        values = torch.zeros(layers, heads, positions, size + EXTRA)
        values[..., size] = 1
        return keys, values

    @property
    def length(self) -> int:
        """Slots in use: committed tokens plus what forwards appended and nobody kept or cropped yet."""
        return self.committed + sum(keys.shape[2] for keys, _ in self._pending)

    @property
    def room(self) -> int:
        """Levels that a tree below the next token may have: no path crosses the end of a block."""
        return BLOCK - 1 - self.committed % BLOCK

    @property
    def pending(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values, with their further columns, of the nodes that are not kept yet; None: there are none."""
        if not self._pending:
            return None
        keys, values = (torch.cat(parts, 2) for parts in zip(*self._pending, strict=True))
        return keys, values

    def append(self, keys: Tensor, values: Tensor, committed: bool) -> None:
        """Further `keys` [layers, heads, n, size] and `values` [layers, heads, n, size], `committed` or as nodes."""
        if not committed:
            ones = values.new_zeros(*values.shape[:3], EXTRA)
            ones[..., 0] = 1
            self._pending.append((keys, torch.cat([values, ones], 3)))
            return
        assert not self._pending, "what comes after nodes depends on which of them are kept"
        size, taken = self._shape[2], 0
        while taken < keys.shape[2]:
            self.settle()
            at = self.committed - self.done
            count = min(BLOCK - at, keys.shape[2] - taken)
            self.block[0][:, :, at : at + count] = keys[:, :, taken : taken + count]
            self.block[1][:, :, at : at + count, :size] = values[:, :, taken : taken + count]
            taken, self.committed = taken + count, self.committed + count

    def settle(self) -> None:
        """Let a current block that is full join the others."""
        if self.committed - self.done < BLOCK:
            return
        grown = [
            block.clone() if self.done == 0 else torch.cat([held, block], 2)
            for held, block in zip(self.full, self.block, strict=True)
        ]
        self.full, self.done = (grown[0], grown[1]), self.committed
        self.version += 1

    def crop(self, length: int) -> None:
        """Forget every slot from `length` on."""
        waiting = max(0, length - self.committed)
        held = self.pending
        self._pending = [] if held is None or not waiting else [(held[0][:, :, :waiting], held[1][:, :, :waiting])]
        if length >= self.committed:
            return
        if length < self.done:
            self.done = length // BLOCK * BLOCK
            here = slice(self.done, self.done + BLOCK)
            self.block = (self.full[0][:, :, here].clone(), self.full[1][:, :, here].clone())
            kept = max(self.done, BLOCK)
            self.full = (self.full[0][:, :, :kept].contiguous(), self.full[1][:, :, :kept].contiguous())
            self.version += 1
        self.committed = length

    def keep(self, prefix_length: int, kept: Tensor) -> None:
        """Of the slots behind `prefix_length` keep those at offsets `kept` [m] (ascending), moved together."""
        assert self.done <= prefix_length <= self.committed, "nodes stand in or behind the current block"
        size, start = self._shape[2], prefix_length - self.done
        behind = [(part[0][:, :, start : self.committed - self.done]) for part in ((self.block[0],), (self.block[1],))]
        held = self.pending
        keys, values = behind if held is None else (torch.cat(pair, 2) for pair in zip(behind, held, strict=True))
        chosen = keys[:, :, kept], values[:, :, kept, :size]
        self._pending, self.committed = [], prefix_length
        self.append(*chosen, committed=True)

    @staticmethod
    def retain(caches: Sequence["BlockCache"]) -> None:
        """Each sequence has tensors of its own: nothing is held of those that left."""
