"""Weights as product.hpp reads them: in tiles of 16 outputs, of which four inputs at a time stand side by side."""

import mmap
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynatree.engine.graph.codes import GROUP, Codes

OUTPUTS = 16
# Bytes of memory that is asked for at once, of which huge pages can be made.
_CHUNK = 32 * 2**20
_LINE = 64


def packed_eight(values: Tensor, scale: Tensor) -> Tensor:
    """Bytes [tiles, n] of int8 `values` [o, i] with scales [o, 1]: with 128 added, and a tile's scales at its end."""
    groups = values.shape[1] // GROUP
    bytes = _tiles((values.to(torch.int16) + 128).to(torch.uint8)).view(-1, OUTPUTS, groups, 8, 4)
    scales = _tiles(scale.float()).view(-1, OUTPUTS)
    return torch.cat([bytes.permute(0, 2, 3, 1, 4).flatten(1), scales.contiguous().view(torch.uint8)], 1)


def packed_four(weight: Codes) -> Tensor:
    """Bytes [tiles, n] of 4-bit codes: of each group of a tile the codes, then scales and least values in float16."""
    groups = weight.codes.shape[1]
    codes = _tiles(weight.codes.to(torch.uint8).flatten(1)).view(-1, OUTPUTS, groups, 4, 2, 4)
    low, high = codes.permute(4, 0, 2, 3, 1, 5)
    least = weight.rest - (weight.scale * weight.zeros).squeeze(-1)
    told = [_tiles(part).view(-1, OUTPUTS, groups).transpose(1, 2) for part in (weight.scale.squeeze(-1), least)]
    halves = torch.cat(told, 2).half().contiguous().view(torch.uint8)
    return torch.cat([(low | high << 4).flatten(2), halves], 2).flatten(1)


def _tiles(rows: Tensor) -> Tensor:
    """`rows` [o, n] with zeros up to a whole number of tiles."""
    return F.pad(rows, (0, 0, 0, -len(rows) % OUTPUTS))


class Memory:
    """Arrays one behind the other, on huge pages where the system has them: each forward reads all of them."""

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def hold(self, values: Tensor) -> np.ndarray:
        """A copy of bytes, at the begin of a line of the processor's cache; more may be read behind it."""
        source = values.flatten().numpy()
        taken = -(-source.nbytes // _LINE) * _LINE
        if taken > len(self._free):
            self._free = _pages(max(taken, _CHUNK if source.nbytes >= _CHUNK // 64 else taken))
        found, self._free = self._free[: source.nbytes], self._free[taken:]
        found[:] = source
        return found


def _pages(count: int) -> np.ndarray:
    memory = mmap.mmap(-1, count)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel may have none.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
