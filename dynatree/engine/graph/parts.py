"""What the graphs of all architectures are made of: products with weights in each format, norms, bitwise attention.

A graph takes n new tokens of each of r requests, one request after the other: their embeddings x [r * n, width], with
a fusion beside them the states to which they are joined [r * n, 2 * width]; cos and sin [r, 1, n, turned] of their
positions; ones [groups, n, EXTRA], of which the first of each EXTRA is one and the others are zero; the rows [w] of
which logits are wanted; of each request a mask [share * n, c + n] (0 or -inf; all rows once for each query of a
group) over c slots of its current block with nodes that are not kept yet, and its new tokens; of each layer the keys
and values of each request's full blocks, which all its new tokens see, and of its current one (block_cache.py). It
gives logits [w, v], and of each layer and request the new keys [layers * r * groups, n, size] and values [layers * r
* groups, n, size + EXTRA]; where layers are read, also what is behind them [r * n, reads * width]. Products with
weights are over all rows; attention is a request's own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import torch
from openvino import PartialShape, Type
from openvino import opset13 as op
from torch import Tensor, nn

from dynatree.engine.fusion import Fusion
from dynatree.engine.graph import codes
from dynatree.engine.graph.block_cache import EXTRA

# In float32 a graph is the model's own forward but for rounding; float16 is the type of its weights alone.
FORMATS = ("float32", "float16", "int8", "int4")

# Inputs of a graph before the masks of its requests.
BEFORE_MASKS = 5


class Shape(NamedTuple):
    """Of a model: query heads, groups of them (key heads), size of a head, of which `turned` are rotated; width."""

    heads: int
    groups: int
    size: int
    turned: int
    width: int

    @property
    def share(self) -> int:
        """Queries of a group."""
        return self.heads // self.groups


class States(NamedTuple):
    """Of a graph: what joins embeddings to states that it is given, and the layers behind which it gives states."""

    fusion: Fusion | None = None
    reads: tuple[int, ...] = ()

    def fed(self, width: int) -> int:
        """Values of a row of x."""
        return width if self.fusion is None else 2 * width


class Nodes(NamedTuple):
    """Inputs of a graph that its layers share."""

    cos: Any
    sin: Any
    ones: Any
    wanted: Any
    masks: list[Any]


def shape(model: Any) -> Shape:
    """Of a transformers model."""
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    turned = 2 * len(model.base_model.rotary_emb.inv_freq)
    return Shape(heads, getattr(config, "num_key_value_heads", None) or heads, size, turned, config.hidden_size)


def whole(*values: int) -> Any:
    """A constant of whole numbers."""
    return op.constant(np.array(values, dtype=np.int64))


def inputs(shape: Shape, requests: int, states: States) -> tuple[list[Any], Nodes]:
    """The inputs before those of the layers, and what the layers use of them."""
    x = op.parameter(PartialShape([-1, states.fed(shape.width)]), Type.f32)
    cos, sin = (op.parameter(PartialShape([requests, 1, -1, shape.turned]), Type.f32) for _ in range(2))
    ones = op.parameter(PartialShape([shape.groups, -1, EXTRA]), Type.f32)
    wanted = op.parameter(PartialShape([-1]), Type.i64)
    masks = [op.parameter(PartialShape([-1, -1]), Type.f32) for _ in range(requests)]
    nodes = Nodes(cos, sin, ones, wanted, masks)
    return [x, cos, sin, ones, wanted, *masks], nodes


def past(shape: Shape, requests: int) -> list[Any]:
    """A layer's inputs: of each request keys and values of the full blocks, keys and values of the current one."""
    sizes = (shape.size, shape.size + EXTRA) * 2 * requests
    return [op.parameter(PartialShape([shape.groups, -1, size]), Type.f32) for size in sizes]


def attention(shape: Shape, nodes: Nodes, z: Any, past: list[Any]) -> tuple[Any, list[Any]]:
    """What the heads read [r * n, heads * size] by z, queries, keys and values side by side, which are not rotated yet.

    z [r * n, (heads + 2 groups) * size]; also each request's new keys and values.
    """
    requests, heads, groups = len(nodes.masks), shape.heads, shape.groups
    z = op.reshape(z, whole(requests, -1, heads + 2 * groups, shape.size), False)
    qk, v = op.variadic_split(z, whole(2), whole(heads + groups, groups)).outputs()
    # In this order OpenVINO makes one kernel of turning and rotating.
    qk, v = rotated(shape, nodes, op.transpose(qk, whole(0, 2, 1, 3))), op.transpose(v, whole(0, 2, 1, 3))
    q, k = op.variadic_split(qk, whole(1), whole(heads, groups)).outputs()
    q, k, v = (op.reshape(part, whole(requests * groups, -1, shape.size), False) for part in (q, k, v))
    if requests == 1:
        mixed, kept = _attention(shape, nodes, nodes.masks[0], q, k, v, past)
        return mixed, [kept]
    qs, ks, vs = (op.split(rows, op.constant(0), requests).outputs() for rows in (q, k, v))
    found = [
        _attention(shape, nodes, nodes.masks[place], qs[place], ks[place], vs[place], past[4 * place : 4 * place + 4])
        for place in range(requests)
    ]
    return op.concat([mixed for mixed, _ in found], 0), [kept for _, kept in found]


def _attention(
    shape: Shape, nodes: Nodes, mask: Any, q: Any, k: Any, v: Any, past: list[Any]
) -> tuple[Any, tuple[Any, Any]]:
    """The same of one request.

    Each sum runs over positions in order: exp(s - max) times the values, with a column of ones for the denominator.
    Zeros between the nodes of a path add nothing, whichever they are. No shape here is computed in the graph: a forward
    would wait there until all before it is done.
    """
    keys, values, block_keys, block_values = past
    v = op.concat([v, nodes.ones], 2)
    s_full = op.matmul(q, keys, False, True)
    # New keys stay in a product with a block's: one of a single column would take another kernel.
    s_block = op.add(op.matmul(q, op.concat([block_keys, k], 1), False, True), mask)
    most = op.maximum(op.reduce_max(s_full, np.array([2]), True), op.reduce_max(s_block, np.array([2]), True))
    mixed = op.add(
        op.matmul(exponential(shape, s_full, most), values, False, False),
        op.matmul(exponential(shape, s_block, most), op.concat([block_values, v], 1), False, False),
    )
    a, denominator, _ = op.variadic_split(mixed, whole(2), whole(shape.size, 1, EXTRA - 1)).outputs()
    a = op.reshape(op.divide(a, denominator), whole(shape.heads, -1, shape.size), False)
    return op.reshape(op.transpose(a, whole(1, 0, 2)), whole(-1, shape.heads * shape.size), False), (k, v)


def rotated(shape: Shape, nodes: Nodes, x: Any) -> Any:
    """x [r, heads, n, size], the first `turned` of each head rotated."""
    rest = None
    if shape.turned < shape.size:
        x, rest = op.variadic_split(x, whole(3), whole(shape.turned, shape.size - shape.turned)).outputs()
    low, high = op.variadic_split(x, whole(3), whole(shape.turned // 2, shape.turned // 2)).outputs()
    crosswise = op.concat([op.multiply(high, op.constant(np.float32(-1))), low], -1)
    x = op.add(op.multiply(x, nodes.cos), op.multiply(crosswise, nodes.sin))
    return x if rest is None else op.concat([x, rest], -1)


def joined(x: Any, weights: "Weights", states: States) -> Any:
    """The rows [r * n, width] that go into the first layer, as `Fusion.joined` makes them."""
    weights.fed(x)
    fusion = states.fusion
    if fusion is None:
        return x
    embedded, state = op.split(x, op.constant(1), 2).outputs()
    norms = zip((embedded, state), (fusion.embedding_norm, fusion.state_norm), strict=True)
    normed = [rms_norm(part, norm.weight, fusion.eps) for part, norm in norms]
    # Read once a step, as a head.
    return op.add(state, weights.head(op.concat(normed, 1), fusion.join.weight))


def read(behind: Sequence[Any], states: States) -> list[Any]:
    """Of what is `behind` each layer [r * n, width] those that are read, as one output, or none."""
    return [op.concat([behind[layer - 1] for layer in states.reads], 1)] if states.reads else []


def model(logits: Any, kept: list[Any], read: list[Any], inputs: list[Any]) -> ov.Model:
    """The graph, with the new keys and values of all layers and requests in one output each."""
    keys, values = (op.concat(list(parts), 0) for parts in zip(*kept, strict=True))
    return ov.Model([logits, keys, values, *read], inputs)


def exponential(shape: Shape, scores: Any, most: Any) -> Any:
    """exp(scale (s - max)) of `scores` [groups, rows, positions]: what softmax has above its denominator."""
    return op.exp(op.multiply(op.subtract(scores, most), op.constant(np.float32(shape.size**-0.5))))


def layer_norm(x: Any, norm: nn.LayerNorm) -> Any:
    """As torch's."""
    scaled = op.mvn(x, np.array([-1]), True, norm.eps, "inside_sqrt")
    scaled = op.multiply(scaled, op.constant(norm.weight.detach().float().numpy()))
    return op.add(scaled, op.constant(norm.bias.detach().float().numpy()))


def rms_norm(x: Any, weight: Tensor, eps: float) -> Any:
    """As LlamaRMSNorm."""
    mean = op.reduce_mean(op.multiply(x, x), np.array([-1]), True)
    scaled = op.divide(x, op.sqrt(op.add(mean, op.constant(np.float32(eps)))))
    return op.multiply(scaled, op.constant(weight.detach().float().numpy()))


class Weights:
    """Products with weights in `format`. It owns the arrays that the graphs' constants point into.

    A second graph of the same model (`again`) takes the weights of the first, in the order in which they were made.
    """

    def __init__(self, format: str):
        self._format = format
        self._held: list[np.ndarray] = []
        self._made: list[Any] = []
        self._next = 0
        self._fed: Any = None
        self._nothing: dict[int, Any] = {}
        self.bytes = 0

    def again(self) -> "Weights":
        """From the first weight on."""
        self._next = 0
        return self

    def fed(self, x: Any) -> None:
        """A graph begins, whose rows are `x`."""
        self._fed, self._nothing = x, {}

    def _weight(self, make: Callable[[], Any]) -> Any:
        if self._next == len(self._made):
            self._made.append(make())
        self._next += 1
        return self._made[self._next - 1]

    def linear(self, x: Any, *layers: nn.Linear) -> Any:
        """x [n, i] by the weights of all `layers` side by side, with their biases."""
        biases = [
            layer.weight.detach().new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
        bias = None if all(layer.bias is None for layer in layers) else torch.cat(biases)
        return self.product(x, torch.cat([layer.weight.detach() for layer in layers]), bias)

    def product(self, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
        """x [n, i] by `weight` [o, i], in this format."""
        weight = weight.detach().float()
        four = self._format == "int4" and weight.shape[1] % codes.GROUP == 0
        y = self._four(x, weight) if four else self._dense(x, weight)
        return y if bias is None else op.add(y, op.constant(bias.detach().float().numpy()))

    def head(self, x: Any, weight: Tensor) -> Any:
        """x [w, i] by the rows [v, i] of the output layer, which are read once a step: in 8 bits at most."""
        return self._dense(x, weight.detach().float())

    def _dense(self, x: Any, weight: Tensor) -> Any:
        return op.matmul(x, self._weight(lambda: self._rows(weight)), False, True)

    def _rows(self, weight: Tensor) -> Any:
        if self._format == "float32":
            return self._constant(weight)
        if self._format == "float16":
            return op.convert(self._constant(weight.half()), "f32")
        values, scale = codes.eight_bits(weight)
        # One group a row: without groups OpenVINO takes some layers of a static graph for float32 ones.
        w = op.convert(self._constant(values[:, None]), "f32")
        w = op.multiply(w, op.constant(scale[:, None].numpy()))
        return op.reshape(w, whole(*values.shape), False)

    def _four(self, x: Any, weight: Tensor) -> Any:
        groups = weight.shape[1] // codes.GROUP
        sums = op.reduce_sum(op.reshape(x, whole(0, groups, codes.GROUP), True), np.array([2]), False)
        columns = [x, sums, *self._zeros(-groups % codes.GROUP)]
        return op.matmul(op.concat(columns, 1), self._weight(lambda: self._groups(weight)), False, True)

    def _zeros(self, count: int) -> list[Any]:
        """So many columns, if any, once a graph: to pad each product's input took a node of its own."""
        if count and count not in self._nothing:
            some, _ = op.variadic_split(self._fed, whole(1), whole(count, -1)).outputs()
            self._nothing[count] = op.multiply(some, op.constant(np.float32(0)))
        return [self._nothing[count]] if count else []

    def _groups(self, weight: Tensor) -> Any:
        q, scale, zeros, _ = codes.with_rest(codes.four_bits(weight))
        w = op.convert(self._constant(q.to(torch.uint8), Type.u4), "f16")
        w = op.subtract(w, op.convert(op.constant(zeros.numpy().astype(np.uint8)), "f16"))
        w = op.multiply(w, op.constant(scale.numpy().astype(np.float16)))
        return op.convert(op.reshape(w, whole(len(q), q.shape[1] * codes.GROUP), False), "f32")

    def _constant(self, values: Tensor, type: Type | None = None) -> Any:
        """A constant that points into memory held here."""
        array = values.contiguous().numpy()
        if type is not None:
            array = array.reshape(-1)[0::2] | array.reshape(-1)[1::2] << 4
        self._held.append(array)
        # A compiled graph holds halves in full.
        self.bytes += array.nbytes * (2 if array.dtype == np.float16 else 1)
        shared = ov.Tensor(array, shared_memory=True) if type is None else ov.Tensor(array, list(values.shape), type)
        return op.constant(shared)
