"""A graph compiled for this processor: for any number of new tokens, and for a few numbers of them by themselves.

Where the number of new tokens is fixed, no shape is looked at during a forward, which is a quarter of the time of one
over a single token. Such a graph takes seconds to make, which hundreds of forwards pay for: it is made when it was
wanted as often, or when somebody asks (`prepare`). One that gives other bits is not used.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import openvino as ov
import torch
from openvino import PartialShape
from torch import Tensor

from dynatree.engine.backend import NO_STATES
from dynatree.engine.graph.block_cache import BLOCK, EXTRA, BlockCache
from dynatree.engine.graph.codes import GROUP
from dynatree.engine.graph.huge_pages import Allocated
from dynatree.engine.graph.parts import BEFORE_MASKS, Shape, Weights

# Numbers of new tokens that have a graph of their own, the most useful first, as long as all fit in so many bytes.
WIDTHS = (1, 8, 4, 16, 2, 32, 64)
STATIC_BYTES = 800 * 2**20
# Numbers of requests that one forward has places for; places that are left over are nobody's.
TOGETHER = (1, 2, 4, 8)
# New tokens of each of several requests that one forward is for: beyond, products over all the rows take nearly as long
# as those of one request after the other, and attention, which is a request's own, takes as long in company.
TOGETHER_WIDTHS = (1, 4, 8)
# Forwards that are wanted of a graph before it is made: those of one request save some 4 ms of the 2 s that it takes,
# those of several some 7 ms of 0.8 s a request.
EARNED, EARNED_TOGETHER = 400, 100
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
_COPIES = 2


class Given(NamedTuple):
    """n new tokens of the request whose text is in `cache`: their rows [n, fed], cos and sin [n, turned].

    `sees` [n, used], `each_other` [n, n]: which slots of the current block in use, and which of themselves, they see;
    None: all, and those before them. Of the last `wanted` logits are.
    """

    cache: BlockCache
    embedded: Tensor
    cos: Tensor
    sin: Tensor
    sees: Tensor | None
    each_other: Tensor | None
    wanted: int


class Found(NamedTuple):
    """Logits [wanted, v]; keys and values [layers, groups, n, ...] of all, which the next forward writes over.

    `states` [n, reads * width]: of all, where layers are read.
    """

    logits: Tensor
    keys: Tensor
    values: Tensor
    states: Tensor


class Graph:
    """A model's graphs, which `make` gives for a number of requests, of `layers` layers, by `threads` threads.

    Their products point into `weights`.
    """

    def __init__(self, make: Callable[[int], ov.Model], weights: Weights, shape: Shape, layers: int, threads: int):
        self._make, self.weights, self._shape, self._layers = make, weights, shape, layers
        self._settings = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP),
            **SAME_KERNELS,
        }
        self._one = make(1)
        # None: its bits are others.
        self._requests: dict[tuple[int, int | None], _Request | None] = {}
        self._wanted: Counter[tuple[int, int | None]] = Counter()
        # Of the last requests that were decoded together.
        self._places = 1
        # Of the graph for any number.
        self._memory = Allocated(weights.bytes)
        # Now, and not in the midst of a request that somebody waits for.
        with self._memory.within():
            self._request(1, None)
        self._least = 1 if shape.share > 1 and self._one_row_is_like_two() else 2
        affordable = WIDTHS[: STATIC_BYTES // (_COPIES * weights.bytes)] if weights.bytes >= STATIC_FROM else ()
        self._static = self._from_least(affordable)
        # Of several requests. None: any number, where memory does not allow more.
        self._together: list[int | None] = [*self._from_least(TOGETHER_WIDTHS)] if self._static else [None]

    def _from_least(self, widths: Sequence[int]) -> list[int]:
        """`widths`, ascending, those below the least as the least."""
        return sorted({max(width, self._least) for width in widths})

    def begin(self, requests: int) -> None:
        """Before so many requests are decoded together: make the graphs for one that have paid for themselves.

        Those for several are made when they have, since nobody reads their text as it is written.
        """
        for width in self._static:
            if self._wanted[1, width] >= EARNED:
                self._request(1, width)
        if not self._static and self._wanted[1, None] >= EARNED_PAGES:
            self._memory.gather()
        if requests > 1:
            self._places = next((count for count in TOGETHER if count >= requests), TOGETHER[-1])

    def prepare(self, requests: int) -> None:
        """Make all graphs for one and for so many requests, whether or not they have paid for themselves."""
        for width in self._static:
            self._request(1, width)
        if not self._static:
            self._memory.gather()
        self.begin(requests)
        if requests > 1:
            for wide in self._together:
                self._request(self._places, wide)

    def groups(self, given: Sequence[Given]) -> list[list[int]]:
        """Places in `given`, sorted into those of which one forward is made."""
        joining = [place for place, one in enumerate(given) if self._joins(one)]
        parts = [joining[begin : begin + TOGETHER[-1]] for begin in range(0, len(joining), TOGETHER[-1])]
        together = [part for part in parts if len(part) > 1 and self._key([given[place] for place in part])]
        grouped = {place for part in together for place in part}
        return together + [[place] for place in range(len(given)) if place not in grouped]

    def infer(self, given: Sequence[Given]) -> list[Found]:
        """What comes of each of `given`, one alone or a group of `groups`, in one forward."""
        n = max(len(one.embedded) for one in given)
        key = self._key(given)
        assert key, "a group that no graph takes"
        request = self._request(*key)
        assert request, "a graph whose bits are others"
        return request.infer(given, key[1] or max(n, self._least), self._least)

    def _joins(self, one: Given) -> bool:
        """Whether a forward over several requests may have these tokens."""
        most = self._together[-1]
        return most is None or (_whole(one) and len(one.embedded) <= most)

    def _key(self, given: Sequence[Given]) -> tuple[int, int | None] | None:
        """Of the graph for the tokens of these requests; None: they are decoded one by one."""
        n = max(len(one.embedded) for one in given)
        if len(given) == 1:
            width = next((width for width in self._static if width >= n), None) if _whole(given[0]) else None
            self._wanted[1, None] += width is None
            return (1, width) if self._wants(1, width) else (1, None)
        # Of a graph that is emptier the work for nobody takes more than the others would one by one, over several
        # tokens each even of one that is half empty.
        if not self._places >= len(given) >= self._places // 2 + (n > 1):
            return None
        wide = next(wide for wide in self._together if wide is None or wide >= n)
        if not self._wants(self._places, wide) and self._wanted[self._places, wide] >= EARNED_TOGETHER:
            self._request(self._places, wide)
        return (self._places, wide) if self._requests.get((self._places, wide)) else None

    def _wants(self, places: int, width: int | None) -> bool:
        """Note that this graph is wanted, where it was not made yet; whether it is there."""
        if (places, width) not in self._requests:
            self._wanted[places, width] += 1
        return self._requests.get((places, width)) is not None

    def _request(self, places: int, width: int | None) -> "_Request | None":
        key = places, width
        if key not in self._requests:
            # Those for another number of requests would keep their memory for nothing.
            for other in [other for other in self._requests if 1 < other[0] != places > 1]:
                del self._requests[other]
            graph = self._one if places == 1 else self._make(places)
            if width is not None:
                graph = graph.clone()
                graph.reshape(_shapes(graph, width, self._shape, places))
            with (memory := Allocated(self.weights.bytes)).within():
                compiled = _core().compile_model(graph, "CPU", self._settings)
                used = key == (1, None) or self._same(compiled, places, width)
                self._requests[key] = _Request(compiled, self._shape, self._layers, places) if used else None
            if used and key != (1, None):
                memory.gather()
        return self._requests[key]

    def _one_row_is_like_two(self) -> bool:
        """Whether a product over a single row has its bits beside another: for one some processors have a kernel with
        another order of sums."""
        (both,), request = self._some(1, 2), self._any_number()
        first = Given(both.cache, both.embedded[:1], both.cos[:1], both.sin[:1], None, None, 1)
        alone, beside = _copied(request.infer([first], 1)[0]), request.infer([both], 2)[0]
        return all(
            torch.equal(mine, theirs)
            for mine, theirs in (
                (alone.logits, beside.logits[:1]),
                (alone.keys, beside.keys[:, :, :1]),
                (alone.values, beside.values[:, :, :1]),
            )
        )

    def _any_number(self) -> "_Request":
        """Of the graph for any number of one request's tokens: what it holds may be of inference mode or not, as its
        first forward is, so that each comparison has its own."""
        general = self._requests[1, None]
        assert general is not None
        return _Request(general.compiled, self._shape, self._layers, 1)

    def _some(self, places: int, n: int) -> list[Given]:
        """`n` tokens of each of so many requests, by chance, after one text."""
        shape, chance = self._shape, torch.Generator().manual_seed(0)

        def some(*size: int) -> Tensor:
            return torch.randn(*size, generator=chance)

        text = BlockCache(self._layers, shape.groups, shape.size)
        values = some(self._layers, shape.groups, _SEEN, shape.size + EXTRA)
        values[..., shape.size :] = text.block[1][:, :, :_SEEN, shape.size :]
        text.append(some(self._layers, shape.groups, _SEEN, shape.size), values, committed=True)
        return [
            Given(text, some(n, shape.width), some(n, shape.turned), some(n, shape.turned), None, None, n)
            for _ in range(places)
        ]

    def _same(self, compiled: ov.CompiledModel, places: int, width: int | None) -> bool:
        """Whether `compiled` has the bits of the graph for any number of one request's tokens, on some of them."""
        n = width or 2
        made, any_number = _Request(compiled, self._shape, self._layers, places), self._any_number()
        given = self._some(places, n)
        found = made.infer(given, n, self._least)
        alone = [_copied(any_number.infer([one], max(n, self._least), self._least)[0]) for one in given]
        return all(
            torch.equal(mine, theirs)
            for one, other in zip(found, alone, strict=True)
            for mine, theirs in zip(one, other, strict=True)
        )


def _copied(found: Found) -> Found:
    return Found(*(part.clone() for part in found))


def _whole(one: Given) -> bool:
    """Whether its current block has the size of one."""
    return one.cache.block[0].shape[2] == BLOCK


@cache
def _core() -> ov.Core:
    """One for the process: with the last of them its libraries are unloaded, and a signal that they handle is fatal."""
    return ov.Core()


@cache
def _before(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def _shapes(graph: ov.Model, n: int, shape: Shape, places: int) -> dict[ov.Output, PartialShape]:
    """Of the inputs for `n` new tokens of each request; the full blocks may be any number."""
    rows = places * n
    known = [[rows, shape.width], *([places, 1, n, shape.turned],) * 2, [shape.groups, n, EXTRA], [-1]]
    known += [[shape.share * n, BLOCK + n]] * places
    past = [[shape.groups, count, size] for count in (-1, BLOCK) for size in (shape.size, shape.size + EXTRA)]
    of_layers = (len(graph.inputs) - len(known)) // len(past)
    return dict(zip(graph.inputs, map(PartialShape, [*known, *(past * of_layers)]), strict=True))


class _Request:
    """A graph compiled for so many `places` for requests, with the memory that its inputs and outputs point into."""

    def __init__(self, compiled: ov.CompiledModel, shape: Shape, layers: int, places: int):
        self.compiled, self._request = compiled, compiled.create_infer_request()
        # Of the outputs behind the logits: keys, values, and states where layers are read.
        self._columns = [output.partial_shape[-1].get_length() for output in compiled.outputs[1:]]
        self._room = [torch.empty(0) for _ in self._columns]
        self._shape, self._layers, self._places = shape, layers, places
        # In a place that is left over.
        self._nobody = BlockCache(layers, shape.groups, shape.size)
        self._bound: list[tuple[Tensor, ...]] = [()] * places
        self._held: list[Tensor] = []
        self._given: list[list[Tensor]] = [[] for _ in range(places)]
        self._found: list[Tensor] = []
        self._asked: list[range] = []
        self._wanted = torch.empty(0)
        self._masks: list[Tensor] = [torch.empty(0, 0)] * places

    def infer(self, given: Sequence[Given], width: int, least: int = 1) -> list[Found]:
        """As `Graph.infer`, with rows that see themselves alone up to `width` of each request.

        The head has `least` rows or more.
        """
        self._hold(width)
        counts = [len(one.embedded) for one in given]
        for place in range(self._places):
            one = given[place] if place < len(given) else None
            self._see(place, one, width)
            if one is not None:
                for held, new in zip(self._given[place], (one.embedded, one.cos, one.sin), strict=True):
                    held[: counts[place]] = new
        asked = self._ask([range(n - one.wanted, n) for n, one in zip(counts, given, strict=True)], width, least)
        self._request.infer()
        keys, values, *read = self._found
        logits = torch.from_numpy(self._request.get_output_tensor(0).data)
        # A copy: the next forward writes into the same memory.
        own = logits[:asked].clone().split([one.wanted for one in given])
        states = [read[0][place * width :][:n].clone() if read else NO_STATES for place, n in enumerate(counts)]
        return [
            Found(own[place], keys[:, place, :, :n], values[:, place, :, :n], states[place])
            for place, n in enumerate(counts)
        ]

    def _see(self, place: int, one: Given | None, width: int) -> None:
        """Let `place` have this request's keys and values, and a mask of what its new tokens see."""
        text = self._nobody if one is None else one.cache
        self._bind(place, (*text.full, *text.block))
        block, share, n = text.block[0].shape[2], self._shape.share, 0 if one is None else len(one.embedded)
        if self._masks[place].shape != (share * width, block + width):
            self._masks[place] = torch.empty(share * width, block + width)
            self._point(BEFORE_MASKS + place, self._masks[place])
        rows = self._masks[place].fill_(-torch.inf).view(share, width, block + width)
        if one is not None:
            here, new = rows[:, :n, : text.length - text.done], rows[:, :n, block : block + n]
            if one.sees is None:
                here.fill_(0)
            else:
                here.masked_fill_(one.sees, 0)
            new.masked_fill_(_before(n) if one.each_other is None else one.each_other, 0)
        rows[:, n:, block + n :].diagonal(dim1=1, dim2=2).fill_(0)

    def _bind(self, place: int, past: tuple[Tensor, ...]) -> None:
        bound = self._bound[place]
        if len(bound) == len(past) and all(a is b for a, b in zip(bound, past, strict=True)):
            return
        self._bound[place] = past
        first, each = BEFORE_MASKS + self._places, len(past)
        for layer in range(self._layers):
            for part, tensor in enumerate(past):
                self._point(first + each * (self._places * layer + place) + part, tensor[layer])

    def _ask(self, rows: list[range], width: int, least: int) -> int:
        """Have logits of these `rows` of each request, of so many in all; how many are asked for."""
        asked = sum(map(len, rows))
        if rows == self._asked and len(self._wanted) == max(asked, least):
            return asked
        self._asked = rows
        wanted = [place * width + row for place, each in enumerate(rows) for row in each]
        self._wanted = torch.tensor(wanted + wanted[-1:] * (least - asked))
        self._point(BEFORE_MASKS - 1, self._wanted)
        return asked

    def _hold(self, width: int) -> None:
        """Have memory for so many new tokens of each request, and for what comes of them."""
        shape, places = self._shape, self._places
        if self._held and len(self._held[0]) == places * width:
            return
        ones = torch.zeros(shape.groups, width, EXTRA)
        ones[..., 0] = 1
        rotations = (torch.zeros(places, 1, width, shape.turned) for _ in range(2))
        self._held = [torch.zeros(places * width, shape.width), *rotations, ones]
        for place, tensor in enumerate(self._held):
            self._point(place, tensor)
        self._given = [[part.view(places, width, -1)[place] for part in self._held[:3]] for place in range(places)]
        self._found, self._asked = [], []
        kept = (self._layers, places, shape.groups, width)
        for place, columns in enumerate(self._columns):
            if place < 2:
                self._found.append(self._output(place, math.prod(kept[:-1]), width, columns).view(*kept, columns))
            else:
                self._found.append(self._output(place, places * width, columns))

    def _point(self, place: int, tensor: Tensor) -> None:
        # OpenVINO does not keep what its tensors point into: `_bound`, `_masks`, `_held`, `_wanted` and `_room` do.
        self._request.set_input_tensor(place, ov.Tensor(tensor.numpy(), shared_memory=True))

    def _output(self, place: int, *shape: int) -> Tensor:
        """Memory of this shape that the output is written into from now on; what was had for more is kept.

        The logits are copied out of OpenVINO's own: where there are many, it writes elsewhere more slowly.
        """
        if self._room[place].numel() < math.prod(shape):
            self._room[place] = torch.empty(math.prod(shape))
        found = self._room[place][: math.prod(shape)].view(shape)
        self._request.set_output_tensor(1 + place, ov.Tensor(found.numpy(), shared_memory=True))
        return found
