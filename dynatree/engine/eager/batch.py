"""Rows of different lengths in one forward: padded on the left, each row behind its own length in the cache.

So the last token of every row stands last, a row's slots are the same as if it were alone, and nothing has to move
when rows accept different lengths. The ways that this goes wrong are listed in 2510.22876.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynatree.engine.backend import Feed


class Batch(NamedTuple):
    """Of `b` rows of `n` tokens: ids and positions [b, n], mask [b, n, end], cache slots [b, n], states [b, n, width].

    No mask: plain continuation; no slots: rows alike (kv_cache.py, `place`); no states: tokens are joined to none.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None
    columns: Tensor | None
    states: Tensor | None = None


def collate(feeds: Sequence[Feed]) -> Batch:
    """The rows of one forward. Rows alike, each plainly continuing, need neither a mask nor slots of their own.

    Padding sees itself alone (a softmax over nothing is no number) and is stored behind its row's tokens, where the
    row's next tokens overwrite it.
    """
    counts, lengths = [len(feed.tokens) for feed in feeds], [feed.cache.length for feed in feeds]
    n, b = max(counts), len(feeds)
    end = max(lengths) + n
    alike = len(set(counts)) == len(set(lengths)) == 1
    tokens, positions = torch.zeros(b, n, dtype=torch.long), torch.zeros(b, n, dtype=torch.long)
    masked = not alike or any(feed.mask is not None for feed in feeds)
    mask = torch.zeros(b, n, end, dtype=torch.bool) if masked else None
    columns = None if alike else torch.zeros(b, n, dtype=torch.long)
    first = feeds[0].states
    states = None if first is None else first.new_zeros(b, n, first.shape[-1])
    for row, (feed, count, length) in enumerate(zip(feeds, counts, lengths, strict=True)):
        padding, behind = n - count, length + count
        tokens[row, padding:] = feed.tokens
        positions[row, padding:] = torch.arange(length, behind) if feed.positions is None else feed.positions
        if states is not None:
            assert feed.states is not None, "rows of one forward are fed alike"
            states[row, padding:] = feed.states
        if mask is not None:
            plain = torch.ones(count, behind, dtype=torch.bool).tril(length)
            mask[row, padding:, :behind] = plain if feed.mask is None else feed.mask
            mask[row, :padding, behind : behind + padding] = torch.eye(padding, dtype=torch.bool)
        if columns is not None:
            columns[row, :padding] = torch.arange(behind, behind + padding)
            columns[row, padding:] = torch.arange(length, behind)
    return Batch(tokens, positions, mask, columns, states)
