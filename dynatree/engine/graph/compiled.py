"""A graph compiled for this processor: for any number of rows, and for a few numbers of them by themselves.

Where the number of rows is fixed, no shape is looked at during a forward, which is a quarter of the time of one over a
single token (a thirtieth where all layers are one operation). Such a graph takes time to make, which hundreds of
forwards pay for: it is made when it was wanted as often, or when somebody asks (`prepare`). One that gives other bits
is not used.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynatree.engine.backend import NO_STATES
from dynatree.engine.graph import parts
from dynatree.engine.graph.block_cache import BLOCK, NOBODY, BlockCache, Pool, Seat
from dynatree.engine.graph.codes import GROUP
from dynatree.engine.graph.huge_pages import Allocated
from dynatree.engine.graph.parts import (
    BEGINS,
    BLOCK_BEGINS,
    BLOCKS,
    COS,
    LONGEST,
    OWN,
    PAST,
    SIN,
    SPREAD,
    WANTED,
    Shape,
    Size,
    Weights,
    X,
    blocks_held,
)

# Numbers of rows that have a graph of their own, the most useful first. Where each has a copy of the weights, as many
# as fit in so many bytes, the first few at most; a single one would not be worth it.
WIDTHS = (1, 8, 4, 16, 2, 64, 32)
# Where operations of our own are all there is of it, it is made in 20 ms, holds little but logits, and saves a tenth of
# one: a row of nobody takes longer than that.
EXACT_WIDTHS = range(1, 17)
STATIC_BYTES, MOST_COPIES = 650 * 2**20, 4
# Rows that a graph has at most where their number is fixed.
_WIDEST = 64
# Of several requests that are decoded together, rows of each that there is a graph for.
TOGETHER_WIDTHS = (1, 4, 8)
# Rows of one forward at most: of more, each takes as long alone.
MOST_ROWS = 512
# Forwards that are wanted of a graph before it is made: each saves some 4 ms of the 2 s that it takes, or 0.1 of 20 ms.
EARNED, EXACT_EARNED = 400, 200
# Forwards of a graph that is the only one before its weights are worth huge pages: they take 2.5 ms a MiB, once, and
# save 2 µs a MiB and forward.
EARNED_PAGES = 1000
# Of smaller weights a forward takes less than making a graph for it.
STATIC_FROM = 2**20
# No generated kernels for what stands between the products: they may be others where the width is fixed, and those of
# OpenVINO 2026.4 crash on GPT-NeoX.
SAME_KERNELS = {"SNIPPETS_MODE": "DISABLE"}
# Committed tokens that are looked back to where graphs are compared.
_SEEN = 40
# What a compiled graph takes, in sizes of its weights: they are packed, and much is made around them.
_COPIES = 1.6
# Rows that are nobody's.
_NOBODY = Seat(0, (NOBODY,))
# Positions that attention has memory for at first; for longer texts as many again, and kernels are made anew.
_LONGEST = 1024


Array = NDArray[np.float32]
# Of states side by side those that are wanted; None: none.
Columns = slice | NDArray[np.int64] | None
_ALL = slice(None)


class Given(NamedTuple):
    """n new tokens of a request: their rows [n, fed], cos and sin [n, turned], and seats; `further` seats of some.

    Of the last `wanted` logits are.
    """

    embedded: Array
    cos: Array
    sin: Array
    seats: Sequence[Seat]
    further: Sequence[tuple[int, Seat]]
    wanted: int


class Found(NamedTuple):
    """Logits [wanted, v], and `states` [n, reads * width] of all, of which there may be none."""

    logits: Tensor
    states: Tensor


class Graph:
    """A model's graphs, which `make` gives for a size, by `threads` threads. Their products point into `weights`.

    Keys and values are those of `pool`.
    """

    def __init__(self, make: Callable[[Size], ov.Model], weights: Weights, shape: Shape, pool: Pool, threads: int):
        self._make, self.weights, self._shape, self._pool = make, weights, shape, pool
        self._threads = threads
        self._settings = {
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP),
            **SAME_KERNELS,
        }
        # Now, and not in the midst of a request that somebody waits for.
        general = make(Size())
        self._memory = Allocated(weights.copied)
        self._any_number = self._compiled(general, Size(), self._memory)
        # By their rows; None: its bits are others.
        self._requests: dict[int, _Request | None] = {}
        self._wanted: Counter[int | None] = Counter()
        self._least = 1 if self._one_row_is_like_two() else 2
        known, self._earned = (EXACT_WIDTHS, EXACT_EARNED) if weights.alone else (WIDTHS, EARNED)
        copies = min(MOST_COPIES, int(STATIC_BYTES / (_COPIES * weights.copied))) if weights.copied else len(known)
        count = copies if weights.bytes >= STATIC_FROM else 0
        self._static = self._from_least(known[:count] if count > 1 else ())
        # Those, and of several requests while they are decoded together; ascending.
        self._widths = self._static

    def _from_least(self, widths: Sequence[int]) -> list[int]:
        """`widths`, ascending, those below the least as the least."""
        return sorted({max(width, self._least) for width in widths})

    def begin(self, requests: int) -> None:
        """Before so many requests are decoded together: make the graphs that have paid for themselves."""
        if requests > 1 and self._static and not self.weights.alone:
            together = {rows for width in TOGETHER_WIDTHS if (rows := requests * width) <= _WIDEST}
            self._widths = sorted(together.union(self._static))
            # Those for another number of requests would keep their memory for nothing.
            for other in {*self._requests} - {*self._widths}:
                del self._requests[other]
        # Those for a pool that was smaller hold all of its memory.
        for old in [width for width, request in self._requests.items() if not self._fits(request)]:
            del self._requests[old]
        for width in self._widths:
            if self._wanted[width] >= self._earned:
                self._request(width)
        if not self._static and self._wanted[None] >= EARNED_PAGES:
            self._memory.gather()

    def prepare(self, requests: int) -> None:
        """Make all graphs for one and for so many requests, whether or not they have paid for themselves."""
        self.begin(requests)
        for width in self._static if requests == 1 else self._widths:
            self._request(width)
        if not self._static:
            self._memory.gather()

    def infer(self, given: Sequence[Given], states: Columns, lent: bool = False) -> list[Found]:
        """What comes of each of `given`, in one forward, of all `states` some; with `lent`, logits where the next one
        writes."""
        rows = max(self._least, sum(len(one.seats) for one in given))
        further = sum(len(one.further) for one in given)
        width: int | None = rows
        if not self.weights.alone:
            width = next((width for width in self._widths if width >= rows and _further(width) >= further), None)
        elif rows not in self._widths or _further(rows) < further:
            width = None
        request = self._requests.get(width) if width else None
        if request is None or not self._fits(request):
            self._wanted[width] += 1
            request = self._any_number
        return request.infer(given, self._pool, self._least, states, lent)

    def _fits(self, request: "_Request | None") -> bool:
        """Whether it is for as many blocks as there are; the pool may have grown."""
        return request is None or request.size.blocks == len(self._pool)

    def _request(self, width: int) -> None:
        """Make the graph for so many rows, if there is none for the pool as it is."""
        if width in self._requests and self._fits(self._requests[width]):
            return
        # First: it may have the pool grow.
        some, memory = self._some(width), Allocated(self.weights.copied)
        size = Size(width, _further(width), len(self._pool))
        made = self._compiled(self._make(size), size, memory)
        self._requests[width] = made if self._same(made, some) else None
        if self._requests[width]:
            memory.gather()

    def _compiled(self, graph: ov.Model, size: Size, memory: Allocated) -> "_Request":
        # Those of its own would only be in the way.
        threads = 1 if self.weights.alone else self._threads
        # Nor is a thread to be kept to one processor, which those that it begins would be kept to as well.
        pinning = {"ENABLE_CPU_PINNING": "NO"} if self.weights.alone else {}
        settings = {**self._settings, **pinning, "INFERENCE_NUM_THREADS": str(threads)}
        with memory.within():
            return _Request(_core().compile_model(graph, "CPU", settings), self._shape, size)

    def _one_row_is_like_two(self) -> bool:
        """Whether a product over a single row has its bits beside another: for one some processors have a kernel with
        another order of sums."""
        (alone,) = self._any_number.infer([self._some(1)], self._pool, 1)
        (both,) = self._any_number.infer([self._some(2)], self._pool, 2)
        return torch.equal(alone.logits, both.logits[:1])

    def _some(self, n: int) -> Given:
        """The first `n` of some tokens, by chance, after one text."""
        chance = np.random.default_rng(0)

        def some(*size: int) -> np.ndarray:
            return chance.standard_normal(size, dtype=np.float32)

        text = BlockCache(self._pool)
        (*_, last), _ = text.append_text(_SEEN)
        for held in (self._pool.keys, self._pool.values):
            held[:, last.blocks] = some(*held[:, last.blocks].shape)
        shape, most = self._shape, _WIDEST
        x, cos, sin = (some(most, columns)[:n] for columns in (shape.width, shape.turned, shape.turned))
        # Leaves, and a branch, whose first node is to stand once more.
        seats, further = text.append_nodes([-1, 0, 0, 2, *[0] * n][:n])
        # `text` gives its blocks back and forgets them, but nobody takes them before the forward.
        seats = [seat._replace(blocks=[*seat.blocks]) for seat in seats]
        return Given(x, cos, sin, seats, further, n)

    def _same(self, made: "_Request", some: Given) -> bool:
        """Whether `made` has the bits of the graph for any number, on `some` tokens."""
        # What a graph holds may be of inference mode or not, as its first forward is: each comparison has its own.
        pairs = (made, self._any_number)
        requests = [_Request(one.compiled, self._shape, one.size) for one in pairs]
        (mine,), (theirs,) = (request.infer([some], self._pool, self._least) for request in requests)
        return all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


def _further(width: int) -> int:
    """Further seats of a graph for so many rows: as a root with children needs, and as deeper trees mostly do."""
    return max(0, width - 2, 3 * width // 2 - 4)


@cache
def _core() -> ov.Core:
    """One for the process: with the last of them its libraries are unloaded, and a signal that they handle is fatal."""
    return ov.Core()


class _Request:
    """A compiled graph of this `size`, with the memory that its inputs point into."""

    def __init__(self, compiled: ov.CompiledModel, shape: Shape, size: Size):
        self.compiled, self.size, self._shape = compiled, size, shape
        self._request = compiled.create_infer_request()
        # OpenVINO does not keep what its tensors point into.
        self._held: dict[int, np.ndarray] = {}
        self._bound: tuple[np.ndarray, np.ndarray] | None = None
        self._rows = self._places = self._longest = 0
        self._wanted: list[int] = []
        self._reads = len(compiled.outputs) > 1
        self._outputs: dict[int, tuple[Array, Tensor]] = {}

    def infer(
        self, given: Sequence[Given], pool: Pool, least: int, states: Columns = _ALL, lent: bool = False
    ) -> list[Found]:
        """As `Graph.infer`, with rows of nobody up to those of the graph, or up to `least`."""
        ends = [*accumulate(len(one.seats) for one in given)]
        begins = [0, *ends[:-1]]
        further = [(begin + row, seat) for begin, one in zip(begins, given, strict=True) for row, seat in one.further]
        rows = self.size.rows or max(least, ends[-1])
        places = self.size.places or rows + len(further)
        self._hold(rows, places)
        self._bind(pool)
        x, cos, sin = (self._held[place] for place in (X, COS, SIN))
        for begin, end, one in zip(begins, ends, given, strict=True):
            x[begin:end], cos[begin:end, 0, 0], sin[begin:end, 0, 0] = one.embedded, one.cos, one.sin
        if further:
            again = [row for row, _ in further]
            for part in (self._held[SPREAD], cos, sin):
                part[rows : rows + len(again)] = part[again]
        seats = [seat for one in given for seat in one.seats] + [_NOBODY] * (rows - ends[-1])
        seats += [seat for _, seat in further]
        self._sit(seats + [_NOBODY] * (places - len(seats)))
        wanted_ends = ends
        if self.size.rows is None:
            wanted = [row for end, one in zip(ends, given, strict=True) for row in range(end - one.wanted, end)]
            self._ask(wanted + wanted[-1:] * (least - len(wanted)))
            wanted_ends = [*accumulate(one.wanted for one in given)]
        # Else outputs would be copied, too.
        self._request.infer(share_outputs=True)
        all_logits, every = self._output(0)
        # Of all rows itself: between forwards a view of torch's takes twenty microseconds, and a copy forty.
        logits = [
            every if one.wanted == len(all_logits) else every[end - one.wanted : end]
            for end, one in zip(wanted_ends, given, strict=True)
        ]
        if not lent:
            # The next forward writes into the same memory.
            logits = [part.clone() for part in logits]
        if states is None or not self._reads:
            return [Found(part, NO_STATES) for part in logits]
        behind, _ = self._output(1)
        rows_of = [torch.from_numpy(behind[begin:end, states].copy()) for begin, end in zip(begins, ends, strict=True)]
        return [*map(Found, logits, rows_of)]

    def _output(self, place: int) -> tuple[Array, Tensor]:
        """What the last forward gave there; of a graph with a number of rows it is always in the same memory."""
        found = self._outputs.get(place)
        if found is None:
            values = self._request.get_output_tensor(place).data
            found = values, torch.from_numpy(values)
            if self.size.rows is not None:
                self._outputs[place] = found
        return found

    def _hold(self, rows: int, places: int) -> None:
        """Have memory for so many rows, and places of attention."""
        if (rows, places) == (self._rows, self._places):
            return
        self._rows, self._places = rows, places
        zeros = {X: (rows, self._shape.width), **dict.fromkeys((COS, SIN), (places, 1, 1, self._shape.turned))}
        for place, shape in zeros.items():
            self._point(place, np.zeros(shape, np.float32))
        sequences = places + parts.EMPTY
        whole: dict[int, np.ndarray] = {
            PAST: np.zeros(sequences, np.int32),
            BLOCK_BEGINS: np.zeros(sequences + 1, np.int32),
        }
        whole[BEGINS] = np.minimum(np.arange(sequences + 1, dtype=np.int32), places)
        if self.size.rows is not None:
            whole[BLOCKS] = np.zeros(blocks_held(self.size), np.int32)
        if self.size.rows is None or self.size.further:
            whole[SPREAD] = np.minimum(np.arange(places, dtype=np.int32), rows - 1)
        if self.size.rows is None:
            whole[OWN] = np.arange(rows)
        for place, values in whole.items():
            self._point(place, values)

    def _sit(self, seats: Sequence[Seat]) -> None:
        """Have a row in each of `seats`."""
        blocks, begins = list[int](), [0]
        for past, held, own in seats:
            blocks += held[: past // BLOCK + 1]
            if own is not None:
                blocks.append(own)
            begins.append(len(blocks))
        pasts, places = [seat.past for seat in seats], len(seats)
        self._held[PAST][:places], self._held[BLOCK_BEGINS][: places + 1] = pasts, begins
        self._held[BLOCK_BEGINS][places + 1 :] = begins[-1]
        if self.size.rows is None:
            self._point(BLOCKS, np.array(blocks, np.int32))
        else:
            self._held[BLOCKS][: len(blocks)] = blocks
        if (longest := max(pasts) + 1) > self._longest:
            self._longest = max(_LONGEST, 1 << (longest - 1).bit_length())
            self._point(LONGEST, np.array(self._longest, np.int32))

    def _ask(self, rows: list[int]) -> None:
        """Have logits of these `rows`."""
        if rows != self._wanted:
            self._wanted = rows
            self._point(WANTED, np.array(rows))

    def _bind(self, pool: Pool) -> None:
        """Have the keys and values of `pool`."""
        if self._bound is not None and self._bound[0] is pool.keys:
            return
        self._bound = pool.keys, pool.values
        given = pool.given()
        first = len(self.compiled.inputs) - len(given)
        for place, part in enumerate(given, first):
            self._request.set_input_tensor(place, ov.Tensor(part, shared_memory=part.dtype == np.float32))

    def _point(self, place: int, values: np.ndarray) -> None:
        self._held[place] = values
        # A number by itself is copied.
        tensor = ov.Tensor(values, shared_memory=True) if values.ndim else ov.Tensor(values)
        self._request.set_input_tensor(place, tensor)
