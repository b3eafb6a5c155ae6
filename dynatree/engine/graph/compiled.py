"""A graph compiled for this processor: for any number of new tokens, and for a few numbers of them by themselves.

Where the number of new tokens is fixed, no shape is looked at during a forward, which is a quarter of the time of one
over a single token. The bits are the same as long as OpenVINO does not generate other kernels for what stands between
the products, as it does there by default.
"""

from functools import cache
from typing import NamedTuple

import openvino as ov
import torch
from openvino import PartialShape
from torch import Tensor

from dynatree.engine.graph.block_cache import BLOCK, EXTRA, BlockCache
from dynatree.engine.graph.codes import GROUP
from dynatree.engine.graph.parts import FIRST_PAST, Shape, Weights

# Numbers of new tokens that have a graph of their own, the most useful first, as long as all fit in so many bytes.
WIDTHS = (1, 8, 4, 16, 2, 32, 64)
STATIC_BYTES = 800 * 2**20
# Keeps a graph of a fixed width to the kernels of one of any.
SAME_KERNELS = {"SNIPPETS_MODE": "DISABLE"}
# What a compiled graph takes, in sizes of its weights: they are packed, and much is made around them.
_COPIES = 2


class Given(NamedTuple):
    """Of n new tokens: embeddings [n, width], cos and sin [n, 1, size], how many slots of the current block are in use,
    and which of those [n, used] and of each other [n, n] they see; None: all, and those before them.
    """

    embedded: Tensor
    cos: Tensor
    sin: Tensor
    used: int
    sees: Tensor | None
    each_other: Tensor | None


class Graph:
    """`graph` as parts.py says, of `layers` layers whose products point into `weights`, by `threads` threads."""

    def __init__(self, graph: ov.Model, weights: Weights, shape: Shape, layers: int, threads: int):
        self._graph, self._weights, self._shape, self._layers = graph, weights, shape, layers
        self._settings = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP),
            **SAME_KERNELS,
        }
        # A product over a single row takes another kernel, with another order of sums.
        self._least = 2 if shape.share == 1 else 1
        affordable = WIDTHS[: STATIC_BYTES // (_COPIES * weights.bytes)]
        self._static = sorted(width for width in affordable if width >= self._least)
        self._requests: dict[int | None, _Request] = {}

    def infer(self, given: Given, text: BlockCache, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [wanted, v] of the last of n new tokens, and keys and values [layers, groups, n, ...] of all.

        Keys and values are the graph's own memory, which the next forward writes into.
        """
        n = len(given.embedded)
        fitting = [width for width in self._static if width >= n] if text.block[0].shape[2] == BLOCK else []
        request = self._request(fitting[0] if fitting else None)
        request.bind((*text.full, *text.block))
        return request.infer(given, max(n, fitting[0] if fitting else self._least), wanted)

    def _request(self, width: int | None) -> "_Request":
        if width not in self._requests:
            graph = self._graph
            if width is not None:
                graph = graph.clone()
                graph.reshape(_shapes(graph, width, self._shape))
            compiled = ov.Core().compile_model(graph, "CPU", self._settings)
            self._requests[width] = _Request(compiled, self._shape, self._layers)
        return self._requests[width]


@cache
def _before(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def _shapes(graph: ov.Model, n: int, shape: Shape) -> dict[ov.Output, PartialShape]:
    """Of the inputs for `n` new tokens; the full blocks may be any number."""
    known = [[n, shape.width], [n, 1, shape.size], [n, 1, shape.size], [n * shape.share, BLOCK + n]]
    known += [[shape.groups, n, EXTRA], [-1]]
    past = [[shape.groups, count, size] for count in (-1, BLOCK) for size in (shape.size, shape.size + EXTRA)]
    of_layers = (len(graph.inputs) - FIRST_PAST) // len(past)
    return dict(zip(graph.inputs, map(PartialShape, [*known, *(past * of_layers)]), strict=True))


class _Request:
    """A compiled graph with the memory that its inputs point into."""

    def __init__(self, compiled: ov.CompiledModel, shape: Shape, layers: int):
        self._request, self._shape, self._layers = compiled.create_infer_request(), shape, layers
        self._bound: tuple[Tensor, ...] = ()
        self._held: list[Tensor] = []

    def bind(self, past: tuple[Tensor, ...]) -> None:
        """Let the layers' inputs point into `past`: a cache's tensors."""
        if len(self._bound) == len(past) and all(a is b for a, b in zip(self._bound, past, strict=True)):
            return
        self._bound = past
        for layer in range(self._layers):
            for place, tensor in enumerate(past):
                self._point(FIRST_PAST + len(past) * layer + place, tensor[layer])

    def infer(self, given: Given, width: int, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `Graph.infer`, with rows that see themselves alone up to `width`."""
        n, block = len(given.embedded), self._bound[2].shape[2]
        if not self._held or len(self._held[0]) != width or self._held[3].shape[1] != block + width:
            self._hold(width, block)
        x, cos, sin, mask = self._held[:4]
        x[:n], cos[:n], sin[:n] = given[:3]
        mask.fill_(-torch.inf)
        rows = mask.view(width, self._shape.share, block + width)
        here, new = rows[:n, :, : given.used], rows[:n, :, block : block + n]
        if given.sees is None:
            here.fill_(0)
        else:
            here.masked_fill_(given.sees[:, None], 0)
        each_other = given.each_other if given.each_other is not None else _before(n)
        new.masked_fill_(each_other[:, None], 0)
        for row in range(n, width):
            rows[row, :, block + row] = 0
        # The rows that are wanted last are other ones at each forward, and may be fewer.
        self._held[5] = torch.arange(n - wanted, n)
        self._point(5, self._held[5])
        self._request.infer()
        logits, keys, values = (torch.from_numpy(self._request.get_output_tensor(k).data) for k in range(3))
        shape = (self._layers, self._shape.groups, width, -1)
        return logits.clone(), keys.view(shape)[:, :, :n], values.view(shape)[:, :, :n]

    def _hold(self, width: int, block: int) -> None:
        shape = self._shape
        ones = torch.zeros(shape.groups, width, EXTRA)
        ones[..., 0] = 1
        rotations = (torch.zeros(width, 1, shape.size) for _ in range(2))
        mask = torch.empty(width * shape.share, block + width)
        self._held = [torch.zeros(width, shape.width), *rotations, mask, ones, torch.empty(0)]
        for place, tensor in enumerate(self._held[:5]):
            self._point(place, tensor)

    def _point(self, place: int, tensor: Tensor) -> None:
        # OpenVINO does not keep what its tensors point into: `_bound` and `_held` do.
        self._request.set_input_tensor(place, ov.Tensor(tensor.numpy(), shared_memory=True))
