"""What the graphs of all architectures are made of: products with weights in each format, norms, bitwise attention.

A graph takes the embeddings x [n, width] of n new tokens, cos and sin [n, 1, size] of their positions, a mask
[n, f + c + n] (0 or -inf) over f slots of full blocks, c of the current block with nodes that are not kept yet, and the
new ones; the rows [w] of which logits are wanted; and of each layer the keys and values of both parts (block_cache.py).
It gives logits [w, v] and of each layer the new keys and values [groups, n, size].
"""

from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import torch
from openvino import PartialShape, Type
from openvino import opset13 as op
from torch import Tensor, nn

from dynatree.engine.graph import codes
from dynatree.engine.graph.block_cache import EXTRA

# In float32 a graph is the model's own forward but for rounding, which tests compare it by.
FORMATS = ("float32", "int8", "int4")


class Shape(NamedTuple):
    """Of a model: query heads, groups of them (key heads), size of a head, width."""

    heads: int
    groups: int
    size: int
    width: int

    @property
    def share(self) -> int:
        """Queries of a group."""
        return self.heads // self.groups


class Nodes(NamedTuple):
    """Inputs of a graph, and shapes that all layers share: small nodes are what a step over one token waits for."""

    cos: Any
    sin: Any
    mask: Any
    ones: Any
    wanted: Any
    last: Any
    by_head: Any
    by_row: Any
    merged: Any
    parts: Any


def shape(config: Any) -> Shape:
    """Of a transformers configuration."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(heads, getattr(config, "num_key_value_heads", None) or heads, size, config.hidden_size)


def whole(*values: int) -> Any:
    """A constant of whole numbers."""
    return op.constant(np.array(values, dtype=np.int64))


def inputs(shape: Shape) -> tuple[list[Any], Nodes]:
    """The inputs before those of the layers, and what the layers use of them."""
    x = op.parameter(PartialShape([-1, shape.width]), Type.f32)
    cos, sin = (op.parameter(PartialShape([-1, 1, shape.size]), Type.f32) for _ in range(2))
    mask = op.parameter(PartialShape([-1, -1]), Type.f32)
    ones = op.parameter(PartialShape([shape.groups, -1, EXTRA]), Type.f32)
    full = op.parameter(PartialShape([1]), Type.i64)
    wanted = op.parameter(PartialShape([-1]), Type.i64)
    n = op.gather(op.shape_of(x), whole(0), op.constant(0))
    total = op.gather(op.shape_of(mask), whole(1), op.constant(0))
    rows = op.multiply(n, whole(shape.share))
    nodes = Nodes(
        cos,
        sin,
        mask,
        ones,
        wanted,
        last=op.constant(np.array(2)),
        by_head=op.concat([whole(shape.groups, shape.share), n, total], 0),
        by_row=op.concat([whole(shape.groups), rows, total], 0),
        merged=op.concat([whole(shape.groups, shape.share), n, whole(shape.size)], 0),
        parts=op.concat([full, op.subtract(total, full)], 0),
    )
    return [x, cos, sin, mask, ones, full, wanted], nodes


def past(shape: Shape) -> list[Any]:
    """A layer's inputs: keys and values of the full blocks, keys and values of the current one."""
    sizes = (shape.size, shape.size + EXTRA) * 2
    return [op.parameter(PartialShape([shape.groups, -1, size]), Type.f32) for size in sizes]


def attention(shape: Shape, nodes: Nodes, q: Any, k: Any, v: Any, past: list[Any]) -> tuple[Any, list[Any]]:
    """What the heads read [n, heads * size] by queries q [n, heads, size], and the new keys and values.

    Each sum runs over positions in order: exp(s - max) times the values, with a column of ones for the denominator.
    Zeros between the nodes of a path add nothing, whichever they are.
    """
    keys, values, block_keys, block_values = past
    q = op.multiply(q, op.constant(np.float32(shape.size**-0.5)))
    q = op.reshape(q, whole(0, shape.groups, shape.share, shape.size), True)
    q = op.reshape(op.transpose(q, whole(1, 2, 0, 3)), whole(shape.groups, -1, shape.size), False)
    k, v = op.transpose(k, whole(1, 0, 2)), op.transpose(v, whole(1, 0, 2))
    # New keys stay in a product with a block's: one of a single column would take another kernel.
    s = op.concat([op.matmul(q, keys, False, True), op.matmul(q, op.concat([block_keys, k], 1), False, True)], 2)
    s = op.add(op.reshape(s, nodes.by_head, False), nodes.mask)
    e = exponential(s)
    e_full, e_block = op.variadic_split(op.reshape(e, nodes.by_row, False), nodes.last, nodes.parts).outputs()
    mixed = op.add(
        op.matmul(e_full, values, False, False),
        op.matmul(e_block, op.concat([block_values, op.concat([v, nodes.ones], 2)], 1), False, False),
    )
    a, denominator, _ = op.variadic_split(mixed, nodes.last, whole(shape.size, 1, EXTRA - 1)).outputs()
    a = op.reshape(op.divide(a, denominator), nodes.merged, False)
    return op.reshape(op.transpose(a, whole(2, 0, 1, 3)), whole(-1, shape.heads * shape.size), False), [k, v]


def exponential(scores: Any) -> Any:
    """exp(s - max) of `scores` [groups, share, n, positions]: what softmax has above its denominator."""
    return op.exp(op.subtract(scores, op.reduce_max(scores, np.array([3]), True)))


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
    """Products with weights in `format`. It owns the arrays that the graph's constants point into."""

    def __init__(self, format: str):
        self._format = format
        self.held: list[np.ndarray] = []

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
        if self._format == "float32":
            self.held.append(weight.contiguous().numpy())
            return op.matmul(x, op.constant(self.held[-1]), False, True)
        values, scale = codes.eight_bits(weight)
        w = op.multiply(op.convert(op.constant(values.numpy()), "f32"), op.constant(scale.numpy()))
        return op.matmul(x, w, False, True)

    def _four(self, x: Any, weight: Tensor) -> Any:
        groups = weight.shape[1] // codes.GROUP
        q, scale, zeros, _ = codes.with_rest(codes.four_bits(weight))
        sums = op.reduce_sum(op.reshape(x, whole(0, groups, codes.GROUP), True), np.array([2]), False)
        if -groups % codes.GROUP:
            sums = op.pad(sums, np.array([0, 0]), np.array([0, -groups % codes.GROUP]), "constant", np.float32(0))
        flat = q.reshape(-1).numpy().astype(np.uint8)
        self.held.append(flat[0::2] | flat[1::2] << 4)
        w = op.convert(op.constant(ov.Tensor(self.held[-1], list(q.shape), Type.u4)), "f16")
        w = op.subtract(w, op.convert(op.constant(zeros.numpy().astype(np.uint8)), "f16"))
        w = op.multiply(w, op.constant(scale.numpy().astype(np.float16)))
        w = op.convert(op.reshape(w, whole(len(q), q.shape[1] * codes.GROUP), False), "f32")
        return op.matmul(op.concat([x, sums], 1), w, False, True)
