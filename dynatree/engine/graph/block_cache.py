"""Keys and values in blocks of 32 positions: a pool of them, and which of them hold one sequence, a tree's nodes too.

A row of a forward sees the positions of its path and nothing else, by the blocks that they stand in (vLLM, Kwon et al.,
SOSP 2023, 2309.06180). Full blocks are shared by all paths. Behind them each path has blocks of its own, strands: what
of the text and of the path is not in full blocks is there again. A leaf whose siblings have its place in its parent's
blocks reads these and itself, and is written elsewhere, where our own operation reads (attention.hpp).
"""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

# Positions of a block, which OpenVINO's kernel has fixed.
BLOCK = 32
# Blocks of a new pool: as many as come to these bytes, within these bounds. Memory is taken when it is written to.
_BYTES, _FEWEST, _MOST = 2**31, 64, 512
# Rows that are nobody's write here.
NOBODY = 0


class Seat(NamedTuple):
    """Of a row: positions before it, and blocks; those and its own are in the first past // BLOCK + 1 of them.

    A row that has a block of its `own` is written there instead, and reads itself from nowhere.
    """

    past: int
    blocks: Sequence[int]
    own: int | None = None


def addresses(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    """Where `arrays` are, as our operations read it: two whole numbers of 32 bits each; of none zeros."""
    return np.array([0 if one is None else one.ctypes.data for one in arrays], np.uint64).view(np.int32)


# Those of rows, and further ones, each with the place of its row.
Seats = tuple[list[Seat], list[tuple[int, Seat]]]


class Pool:
    """`keys` and `values` [layers, blocks, heads, BLOCK, size], all finite; in time there may be more blocks.

    With `across`, as our own operation wants it, the keys of a block lie in memory as [size, BLOCK], so that one vector
    has several positions.
    """

    def __init__(self, layers: int, heads: int, size: int, across: bool = False):
        # Of keys and values together.
        self.block_bytes = 2 * layers * heads * BLOCK * size * 4
        self._layers, self._heads, self._size, self.across = layers, heads, size, across
        count = max(_FEWEST, min(_MOST, _BYTES // self.block_bytes))
        self.keys, self.values = self._new(count)
        self._free = [*range(count - 1, NOBODY, -1)]

    def _new(self, count: int) -> tuple[Any, Any]:
        row = (BLOCK, self._size)
        # These take no memory before they are written to, where torch's zeros do.
        keys, values = (
            np.zeros((self._layers, count, self._heads, *of), np.float32)
            for of in (row[::-1] if self.across else row, row)
        )
        return keys.swapaxes(-1, -2) if self.across else keys, values

    def given(self) -> list[Any]:
        """What a graph takes: of keys that lie across and of values where they are, of others these themselves."""
        each = [part for both in zip(self.keys, self.values, strict=True) for part in both]
        return [addresses(each)] if self.across else each

    def __len__(self) -> int:
        return int(self.keys.shape[1])

    def take(self) -> int:
        """A block that is nobody else's."""
        if not self._free:
            before = len(self)
            keys, values = self._new(2 * before)
            keys[:, :before], values[:, :before] = self.keys, self.values
            self.keys, self.values = keys, values
            # Added: another thread may have given some back meanwhile.
            self._free += range(2 * before - 1, before - 1, -1)
        block: int = self._free.pop()
        return block

    def give(self, blocks: list[int]) -> None:
        """Take `blocks` back, which is empty then."""
        self._free += reversed(blocks)
        blocks.clear()

    def copy(self, source: int, target: int, at: int, to: int, count: int) -> None:
        """Have what `source` has at so many places from `at` on in `target`, too, from `to` on."""
        for held in (self.keys, self.values):
            held[:, target, :, to : to + count] = held[:, source, :, at : at + count]

    def settle(self, leaf: int, target: int, to: int) -> None:
        """Have what the block of a `leaf` has in `target`, at the place `to`: it stands at the begin of its block, the
        key in order (attention.hpp)."""
        in_order = self.keys.swapaxes(-1, -2).reshape(self.keys.shape)
        for held, of in ((self.keys, in_order), (self.values, self.values)):
            held[:, target, :, to] = of[:, leaf, :, 0]


class _Node(NamedTuple):
    """Where a node's keys and values are."""

    position: int
    strand: "_Strand"


class _Strand:
    """`blocks`, from the `first` block of the text on, and the `nodes` in them behind the text, a path.

    Of a `lone` one the last of them alone is there, which is a leaf.
    """

    def __init__(self, first: int) -> None:
        self.first, self.blocks, self.nodes = first, list[int](), list[int]()
        # Up to here the text is in them.
        self.known = 0
        self.lone = False

    def block(self, position: int) -> int:
        return self.blocks[position // BLOCK - self.first]


class BlockCache:
    """One sequence in `pool`: `committed` tokens, and nodes behind them."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self.committed = 0
        self._nodes: list[_Node] = []
        self._text = _Strand(0)
        self._others: list[_Strand] = []
        weakref.finalize(self, pool.give, self._text.blocks)

    @property
    def length(self) -> int:
        """See `Cache`."""
        return self.committed + len(self._nodes)

    def append_text(self, count: int) -> Seats:
        """The seats of so many further tokens, which are committed; no further ones."""
        assert not self._nodes, "text below nodes"
        seats = [Seat(position, self._text.blocks) for position in range(self.committed, self.committed + count)]
        self.committed += count
        self._reach(self._text, self.committed - 1)
        return seats, []

    def append_nodes(self, parents: Sequence[int]) -> Seats:
        """The seats of new nodes, whose `parents` are nodes before them, the first of all 0, or -1: the text.

        Also the seats where some of them are to stand once more, each with the place of the node among the new ones.
        """
        seats, further, old = list[Seat](), list[tuple[int, Seat]](), len(self._nodes)
        inner = {*parents}
        for parent in parents:
            position, strand = self.committed, self._text
            if parent >= 0:
                before = self._nodes[parent]
                position, strand = before.position + 1, before.strand
            if strand.lone or self.committed + len(strand.nodes) != position:
                # Another node stands there, or the path does not.
                path, behind_leaf = strand.nodes[: position - self.committed], strand.lone
                if self._pool.across and not behind_leaf and len(self._nodes) not in inner:
                    seats.append(self._leaf(path, strand))
                    continue
                strand = self._branch(path, old)
                if behind_leaf:
                    # Its other children find it with its path.
                    self._nodes[parent] = _Node(position - 1, strand)
                new = [node for node in path if node >= old]
                further += [(node - old, self._alone(strand, self._nodes[node].position)) for node in new]
            strand.nodes.append(len(self._nodes))
            self._reach(strand, position)
            self._nodes.append(_Node(position, strand))
            seats.append(Seat(position, self._blocks(strand)))
        return seats, further

    def _blocks(self, strand: _Strand) -> list[int]:
        """Those of the text and of the path in `strand`."""
        shared = [] if strand is self._text else self._text.blocks[: strand.first]
        return shared + strand.blocks if shared else strand.blocks

    def _leaf(self, path: list[int], before: _Strand) -> Seat:
        """The seat of a new node behind `path`, which is in `before`; nothing is to come behind it in this forward."""
        strand, position = self._unused(lone=True), self.committed + len(path)
        strand.nodes += [*path, len(self._nodes)]
        self._reach(strand, position)
        self._nodes.append(_Node(position, strand))
        # Another node has its position in `before`, so that all blocks up to there are.
        return Seat(position, self._blocks(before), strand.block(position))

    def _unused(self, lone: bool = False) -> _Strand:
        """A strand without nodes, its blocks from the text's last one on. A `lone` one was never another: what it has
        stands where others have the text."""
        first = self.committed // BLOCK
        strand = next((one for one in self._others if not one.nodes and one.lone == lone), None)
        if strand is None:
            self._others.append(strand := _Strand(first))
            weakref.finalize(self, self._pool.give, strand.blocks)
        # Blocks that are full of text by now are those of all.
        full = strand.blocks[: first - strand.first]
        del strand.blocks[: len(full)]
        self._pool.give(full)
        strand.first, strand.lone = first, lone
        return strand

    def _branch(self, path: list[int], stored: int) -> _Strand:
        """A strand with the text and `path`, of which the nodes before `stored` are somewhere already."""
        strand = self._unused()
        self._reach(strand, self.committed + len(path))
        begin = max(strand.known, strand.first * BLOCK)
        if begin < self.committed:
            self._copy(self._text, begin, strand, begin, self.committed - begin)
        strand.known = self.committed
        for node in path:
            strand.nodes.append(node)
            if node < stored:
                position, where = self._nodes[node]
                self._copy(where, position, strand, position)
        return strand

    def _reach(self, strand: _Strand, position: int) -> None:
        """Have blocks up to that of `position`."""
        while len(strand.blocks) <= position // BLOCK - strand.first:
            strand.blocks.append(self._pool.take())

    def _copy(self, source: _Strand, position: int, target: _Strand, to: int, count: int = 1) -> None:
        """So many positions from `position` on, which are in one block, to those from `to` on; of a lone strand its
        leaf."""
        blocks = source.block(position), target.block(to)
        if source.lone:
            self._pool.settle(*blocks, to % BLOCK)
        else:
            self._pool.copy(*blocks, position % BLOCK, to % BLOCK, count)

    @staticmethod
    def _alone(strand: _Strand, position: int) -> Seat:
        """Where a row at `position` writes; what it reads is of no use, and therefore little."""
        return Seat(position % BLOCK, [strand.block(position)])

    def crop(self, length: int) -> None:
        """See `Cache`."""
        if length < self.committed:
            self.committed = length
            self._leave(self._text, -(-length // BLOCK))
            # What stood behind the text may begin earlier now.
            for strand in self._others:
                self._leave(strand, 0)
                strand.known = 0
        self._forget(max(0, length - self.committed))

    def _leave(self, strand: _Strand, count: int) -> None:
        last = strand.blocks[count:]
        del strand.blocks[count:]
        self._pool.give(last)

    def _forget(self, count: int) -> None:
        """Have the first `count` nodes alone."""
        del self._nodes[count:]
        for strand in (self._text, *self._others):
            while strand.nodes and strand.nodes[-1] >= count:
                strand.nodes.pop()
                if strand.lone:
                    strand.nodes.clear()

    def keep(self, prefix_length: int, kept: Tensor) -> None:
        """See `Cache`: of nodes, which stand behind the committed text."""
        assert prefix_length == self.committed, "nodes stand behind the text"
        path: list[int] = kept.tolist()
        used = {id(self._nodes[node].strand): self._nodes[node].strand for node in path}
        for offset, node in enumerate(path):
            position, strand = self._nodes[node]
            if strand is not self._text or position != self.committed + offset:
                self._reach(self._text, self.committed + offset)
                self._copy(strand, position, self._text, self.committed + offset)
        known = self.committed + len(path)
        for strand in used.values():
            # It has the text as far as its own path was kept.
            if not strand.lone and strand.nodes[: len(path)] == path:
                strand.known = known
        self.committed = known
        self._forget(0)

    def sizes(self) -> tuple[int, int]:
        """Bytes of the slots in use, and of all blocks that are held."""
        held = sum(len(strand.blocks) for strand in (self._text, *self._others))
        return self.length * (self._pool.block_bytes // BLOCK), held * self._pool.block_bytes

    @staticmethod
    def retain(caches: Iterable["BlockCache"]) -> None:
        """Each sequence has blocks of its own: they are given back with it."""
