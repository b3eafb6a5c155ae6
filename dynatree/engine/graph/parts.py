"""What the graphs of all architectures are made of: products with weights in each format, norms, bitwise attention.

A graph takes n rows, new tokens of any number of requests: their embeddings x [n, width], with a fusion beside them the
states to which they are joined [n, 2 * width]. Attention takes m of them, in the order in which `spread` [m] names
them: first each once, then those whose keys and values are wanted in a further place. Of each of these there are cos
and sin [m, 1, 1, turned] of its position, and its seat (block_cache.py): how many positions are before it (`past`), and
in which blocks they and its own keys and values are. Of each layer there are the keys and values of the pool, which it
writes into. The graph gives logits [w, v] of the rows that are wanted; where layers are
read, also what is behind them [n, reads * width].
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import torch
from openvino import PartialShape, Type
from openvino import opset13 as op
from openvino.op import _PagedAttentionExtension as PagedAttention
from torch import Tensor, nn

from dynatree.engine.fusion import Fusion
from dynatree.engine.graph import codes, kernels
from dynatree.engine.graph.block_cache import BLOCK, addresses
from dynatree.engine.graph.kernels import OPENVINO, packing

# In float32 a graph is the model's own forward but for rounding; float16 is the type of its weights alone.
FORMATS = ("float32", "float16", "int8", "int4")


class Size(NamedTuple):
    """Of a graph: its rows, the further places of keys and values among them, and the blocks of the pool.

    With no number of rows it takes any, is told which are wanted, and the pool may have any number of blocks.
    """

    rows: int | None = None
    further: int = 0
    blocks: int = -1

    @property
    def places(self) -> int | None:
        """Rows of attention."""
        return None if self.rows is None else self.rows + self.further


class Shape(NamedTuple):
    """Of a model: query heads, groups of them (key heads), size of a head, of which `turned` are rotated; width."""

    heads: int
    groups: int
    size: int
    turned: int
    width: int


class States(NamedTuple):
    """Of a graph: what joins embeddings to states that it is given, and the layers behind which it gives states."""

    fusion: Fusion | None = None
    reads: tuple[int, ...] = ()

    def fed(self, width: int) -> int:
        """Values of a row of x."""
        return width if self.fusion is None else 2 * width


class Normed(NamedTuple):
    """Weights [size] of the norms of each head's query and key, before they are rotated (Qwen3)."""

    query: Tensor
    key: Tensor
    eps: float


class Gated(NamedTuple):
    """A layer as Llama's is: a norm, attention by `qkv` and `o`, another norm, `gate` and `up`, and `down`.

    `norms` [width] before attention and after it.
    """

    norms: tuple[Tensor, Tensor]
    qkv: tuple[nn.Linear, ...]
    o: nn.Linear
    gate_up: tuple[nn.Linear, nn.Linear]
    down: nn.Linear
    normed: Normed | None
    eps: float


class Held(NamedTuple):
    """The inputs by which a layer finds its keys and values, where all layers may be in them, and its number."""

    layer: int
    inputs: list[Any]


class Nodes(NamedTuple):
    """Inputs of a graph that its layers share; None: all rows in their order."""

    cos: Any
    sin: Any
    seats: list[Any]
    spread: Any
    own: Any
    wanted: Any


# Sequences of no token behind those of the rows, see `_paged_attention`.
EMPTY = 1
# Of a layer's keys and values, in whole numbers of 32 bits.
ADDRESSES = 4
# Inputs of a graph before those of the layers, the last three where they are wanted.
X, COS, SIN, PAST, BEGINS, BLOCKS, BLOCK_BEGINS, LONGEST, SPREAD, OWN, WANTED = range(11)


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


def inputs(shape: Shape, size: Size, states: States) -> tuple[list[Any], Nodes]:
    """The inputs before those of the layers, and what the layers use of them."""
    rows, places = (-1 if count is None else count for count in (size.rows, size.places))
    x = op.parameter(PartialShape([rows, states.fed(shape.width)]), Type.f32)
    cos, sin = (op.parameter(PartialShape([places, 1, 1, shape.turned]), Type.f32) for _ in range(2))
    # Past, begins of rows, blocks, and begins of theirs; the longest.
    sequences = places + EMPTY
    counts = (-1,) * 4 if size.rows is None else (sequences, sequences + 1, blocks_held(size), sequences + 1)
    seats = [op.parameter(PartialShape([count]), Type.i32) for count in counts]
    seats.append(op.parameter(PartialShape([]), Type.i32))
    spread = op.parameter(PartialShape([places]), Type.i32)
    own, wanted = (op.parameter(PartialShape([-1]), Type.i64) for _ in range(2))
    if size.rows is not None:
        own = wanted = None
        spread = spread if size.further else None
    told = [one for one in (spread, own, wanted) if one is not None]
    return [x, cos, sin, *seats, *told], Nodes(cos, sin, seats, spread, own, wanted)


def blocks_held(size: Size) -> int:
    """Numbers of blocks that a graph with a number of rows takes: each row may see them all, a further place one."""
    return (size.rows or 0) * size.blocks + size.further


def pool(shape: Shape, size: Size, layers: int) -> tuple[list[Any], list[Held]]:
    """The inputs behind the others, and what each of so many layers takes of them (`Pool.given`)."""
    if kernels.kind() == OPENVINO:
        of = PartialShape([size.blocks, shape.groups, BLOCK, shape.size])
        given = [op.parameter(of, Type.f32) for _ in range(2 * layers)]
        return given, [Held(layer, given[2 * layer :][:2]) for layer in range(layers)]
    # Of an input of a number of blocks each graph would make memory of its own, as large as the pool.
    given = [op.parameter(PartialShape([layers * ADDRESSES]), Type.i32)]
    return given, [Held(layer, given) for layer in range(layers)]


def attention(shape: Shape, size: Size, nodes: Nodes, z: Any, held: Held, normed: Normed | None = None) -> Any:
    """What the heads read [n, heads * size] by z, queries, keys and values side by side, which are not rotated yet.

    z [n, (heads + 2 groups) * size]; `normed`: each head's query and key are. A row's sums are over the positions of
    its path in an order of their own, whatever else is computed.
    """
    if kernels.kind() == OPENVINO:
        return _paged_attention(shape, size, nodes, z, held.inputs, normed)
    inputs = [z, *_placed(size, nodes), *held.inputs, *(vector(norm) for norm in _norms(normed))]
    eps = 0.0 if normed is None else normed.eps
    return kernels.attention(inputs, held.layer, shape.heads, shape.groups, shape.size, eps)


def _placed(size: Size, nodes: Nodes) -> list[Any]:
    """What attention of our own takes of the inputs that layers share."""
    past, _, blocks, begins, _ = nodes.seats
    every = op.constant(np.arange(size.rows or 0, dtype=np.int32))
    return [nodes.cos, nodes.sin, every if nodes.spread is None else nodes.spread, past, blocks, begins]


def _norms(normed: Normed | None) -> list[Tensor]:
    return [] if normed is None else [normed.query, normed.key]


def vector(values: Tensor) -> Any:
    """A constant of float32."""
    return op.constant(values.detach().float().numpy())


class Stack(NamedTuple):
    """The layers of a model: of rows y [n, width], with the keys and values of each."""

    shape: Shape
    size: Size
    nodes: Nodes
    y: Any
    held: list[Held]
    layers: list[Gated]


def fuses(shape: Shape, layers: Sequence[Gated], weights: "Weights") -> bool:
    """Whether all `layers` are one operation of our own: where weights are bytes, and nothing else has a bias."""
    inner = [linear for layer in layers for linear in (layer.o, *layer.gate_up, layer.down)]
    fits = weights.are_bytes(shape.width, shape.heads * shape.size, layers[0].down.in_features)
    return fits and all(linear.bias is None for linear in inner)


def gated_layers(stack: Stack, weights: "Weights", states: States) -> tuple[Any, list[Any]]:
    """What is behind `stack` [n, width], and states, if read."""
    return (_fused_layers if weights.alone else _plain_layers)(stack, weights, states)


def _plain_layers(stack: Stack, weights: "Weights", states: States) -> tuple[Any, list[Any]]:
    y, behind = stack.y, []
    for layer, held in zip(stack.layers, stack.held, strict=True):
        z = weights.linear(rms_norm(y, layer.norms[0], layer.eps), *layer.qkv)
        mixed = attention(stack.shape, stack.size, stack.nodes, z, held, layer.normed)
        y = op.add(y, weights.linear(mixed, layer.o))
        z = weights.linear(rms_norm(y, layer.norms[1], layer.eps), *layer.gate_up)
        inner = layer.down.in_features
        gate, up = op.variadic_split(z, op.constant(1), whole(inner, inner)).outputs()
        y = op.add(y, weights.linear(op.multiply(op.swish(gate), up), layer.down))
        behind.append(y)
    return y, read(behind, states)


def _fused_layers(stack: Stack, weights: "Weights", states: States) -> tuple[Any, list[Any]]:
    shape, first = stack.shape, stack.layers[0]
    arrays = list[np.ndarray | None]()
    for layer in stack.layers:
        arrays += [weights.vector(norm) for norm in layer.norms]
        arrays += [weights.packed(*some) for some in (layer.qkv, (layer.o,), layer.gate_up, (layer.down,))]
        biased = any(linear.bias is not None for linear in layer.qkv)
        arrays.append(weights.vector(bias_of(layer.qkv)) if biased else None)
        arrays += [weights.vector(norm) for norm in _norms(layer.normed)] or [None, None]
    made = kernels.layers(
        [stack.y, *_placed(stack.size, stack.nodes), *stack.held[0].inputs, op.constant(addresses(arrays))],
        layers=len(stack.layers),
        heads=shape.heads,
        groups=shape.groups,
        size=shape.size,
        inner=first.down.in_features,
        bits=weights.bits,
        eps=first.eps,
        reads=[*states.reads],
        threads=weights.threads,
    )
    y, *behind = made.outputs()
    return y, behind


def _paged_attention(
    shape: Shape, size: Size, nodes: Nodes, z: Any, pool: list[Any], normed: Normed | None = None
) -> Any:
    """As `attention`, by OpenVINO's operations: each row is a sequence of its own of one new token.

    A sequence of no token at the end keeps OpenVINO from the kernel that cuts sums in as many parts as there are
    threads, where there are few rows.
    """
    heads, groups, wide = shape.heads, shape.groups, shape.size
    if nodes.spread is not None:
        z = op.gather(z, nodes.spread, op.constant(0))
    qk, v = op.variadic_split(z, whole(1), whole((heads + groups) * wide, groups * wide)).outputs()
    # In this shape OpenVINO makes one kernel of turning and rotating, and a row needs no transposition.
    qk = op.reshape(qk, whole(-1, heads + groups, 1, wide), False)
    if normed is not None:
        halves = op.variadic_split(qk, whole(1), whole(heads, groups)).outputs()
        norms = zip(halves, (normed.query, normed.key), strict=True)
        qk = op.concat([rms_norm(part, weight, normed.eps) for part, weight in norms], 1)
    qk = rotated(shape, nodes, qk)
    qk = op.reshape(qk, whole(-1, (heads + groups) * wide), False)
    q, k = op.variadic_split(qk, whole(1), whole(heads * wide, groups * wide)).outputs()
    mixed = _paged(shape, [q, k, v, *pool, *nodes.seats])
    if nodes.own is not None:
        return op.gather(mixed, nodes.own, op.constant(0))
    if size.further:
        mixed, _ = op.variadic_split(mixed, whole(0), whole(size.rows or 0, size.further)).outputs()
    return mixed


def _paged(shape: Shape, given: list[Any]) -> Any:
    """PagedAttentionExtension of `given`: queries to blocks' begins, and the longest text; all else left out.

    It writes keys and values where the seats say and attends then (vLLM, Kwon et al., SOSP 2023, 2309.06180).
    """

    def nothing(type: Any, *shape: int) -> Any:
        return op.constant(np.zeros(shape, type))

    *before, longest = given
    scale, window = op.constant(np.float32(shape.size**-0.5)), nothing(np.int32)
    given = [*before, scale, window, nothing(np.float32, 0), longest]
    # Score aggregation, rotated blocks (3), sparse attention (3), sinks, eviction (4), token types, biases (2).
    given += [nothing(np.int32, 0)] * 3 + [nothing(np.float32, 0)] * 2 + [nothing(np.int32)] * 2
    given += [nothing(np.float32, 0, 0, 0, 0), nothing(np.int32), *[nothing(np.int32, 0)] * 4]
    given += [nothing(np.uint8, 0), nothing(np.int32, 0)]
    node = PagedAttention([one if isinstance(one, ov.Output) else one.output(0) for one in given])
    for name, value in (("k_head_size", shape.size), ("v_head_size", shape.size)):
        node.set_rt_info(value, name)
    for name in ("num_k_heads", "num_v_heads"):
        node.set_rt_info(shape.groups, name)
    return node.output(0)


def rotated(shape: Shape, nodes: Nodes, x: Any) -> Any:
    """x [m, heads, 1, size], the first `turned` of each head rotated."""
    rest = None
    if shape.turned < shape.size:
        x, rest = op.variadic_split(x, whole(3), whole(shape.turned, shape.size - shape.turned)).outputs()
    low, high = op.variadic_split(x, whole(3), whole(shape.turned // 2, shape.turned // 2)).outputs()
    crosswise = op.concat([op.multiply(high, op.constant(np.float32(-1))), low], -1)
    x = op.add(op.multiply(x, nodes.cos), op.multiply(crosswise, nodes.sin))
    return x if rest is None else op.concat([x, rest], -1)


def joined(x: Any, weights: "Weights", states: States) -> Any:
    """The rows [n, width] that go into the first layer, as `Fusion.joined` makes them."""
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
    """Of what is `behind` each layer [n, width] those that are read, as one output, or none."""
    return [op.concat([behind[layer - 1] for layer in states.reads], 1)] if states.reads else []


def asked(y: Any, nodes: Nodes) -> Any:
    """The rows of y [n, width] whose logits are wanted."""
    return y if nodes.wanted is None else op.gather(y, nodes.wanted, op.constant(0))


def layer_norm(x: Any, norm: nn.LayerNorm) -> Any:
    """As torch's."""
    scaled = op.mvn(x, np.array([-1]), True, norm.eps, "inside_sqrt")
    return op.add(op.multiply(scaled, vector(norm.weight)), vector(norm.bias))


def rms_norm(x: Any, weight: Tensor, eps: float) -> Any:
    """As LlamaRMSNorm."""
    mean = op.reduce_mean(op.multiply(x, x), np.array([-1]), True)
    scaled = op.divide(x, op.sqrt(op.add(mean, op.constant(np.float32(eps)))))
    return op.multiply(scaled, vector(weight))


def bias_of(layers: Sequence[nn.Linear]) -> Tensor:
    """That of all `layers` side by side, zeros for those that have none."""
    return torch.cat(
        [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    )


def _shared(array: np.ndarray) -> Any:
    """A constant that points into `array`."""
    return op.constant(ov.Tensor(array, shared_memory=True))


class Weights:
    """Products with weights in `format`. It owns the arrays that the graphs' constants point into.

    A second graph of the same model (`again`) takes the weights of the first, in the order in which they were made.
    Where operations of our own are all there is of a graph (`alone`), they have `threads` of their own.
    """

    def __init__(self, format: str, threads: int = 1):
        self._format, self._threads, self.alone = format, threads, False
        self._held: list[np.ndarray] = []
        self._memory = packing.Memory()
        self._made: list[Any] = []
        self._next = 0
        self._fed: Any = None
        self._nothing: dict[int, Any] = {}
        # Of all weights, and of those that each graph has a copy of.
        self.bytes = self.copied = 0

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
        bias = bias_of(layers) if any(layer.bias is not None for layer in layers) else None
        return self.product(x, torch.cat([layer.weight.detach() for layer in layers]), bias)

    def product(self, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
        """x [n, i] by `weight` [o, i], in this format."""
        weight = weight.detach().float()
        if self.are_bytes(weight.shape[1]):
            packed = _shared(self._packed(lambda: weight, self.bits))
            y = kernels.product([x, packed], len(weight), self.bits, threads=self.threads)
        elif self._format == "int4" and weight.shape[1] % codes.GROUP == 0:
            y = self._four(x, weight)
        else:
            y = self._dense(x, weight)
        return y if bias is None else op.add(y, vector(bias))

    def head(self, x: Any, weight: Tensor, norm: Tensor | None = None, eps: float = 0.0) -> Any:
        """x [w, i] by the rows [v, i] of the output layer, which are read once a step: in 8 bits at most.

        `norm`: the weights [i] of an RMS norm of x before, if any.
        """
        weight = weight.detach().float()
        if self.are_bytes(weight.shape[1]):
            inputs = [x, _shared(self._packed(lambda: weight, 8)), *([] if norm is None else [vector(norm)])]
            return kernels.product(inputs, len(weight), 8, eps, self.threads)
        return self._dense(x if norm is None else rms_norm(x, norm, eps), weight)

    @property
    def threads(self) -> int:
        """Of operations of our own; 0: those that the graph has."""
        return self._threads if self.alone else 0

    @property
    def bits(self) -> int:
        """Of a weight in a layer, where weights are bytes."""
        return 4 if self._format == "int4" else 8

    def are_bytes(self, *inputs: int) -> bool:
        """Whether weights of so many inputs are bytes that operations of our own read."""
        small = self._format in ("int8", "int4") and all(count % codes.GROUP == 0 for count in inputs)
        return small and kernels.multiplies_bytes()

    def vector(self, values: Tensor) -> np.ndarray:
        """`values` in float32, where they are for all graphs."""
        found: np.ndarray = self._weight(lambda: values.detach().float().numpy().copy())
        return found

    def packed(self, *layers: nn.Linear) -> np.ndarray:
        """The weights of all `layers` side by side, where they are bytes."""
        return self._packed(lambda: torch.cat([layer.weight.detach() for layer in layers]).float(), self.bits)

    def _packed(self, dense: Callable[[], Tensor], bits: int) -> np.ndarray:
        """A weight [o, i] in memory that all graphs share."""

        def make() -> np.ndarray:
            weight = dense()
            if bits == 4:
                packed = packing.packed_four(codes.four_bits(weight))
            else:
                packed = packing.packed_eight(*codes.eight_bits(weight))
            held = self._memory.hold(packed)
            self.bytes += held.nbytes
            return held

        found: np.ndarray = self._weight(make)
        return found

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
        size = array.nbytes * (2 if array.dtype == np.float16 else 1)
        self.bytes, self.copied = self.bytes + size, self.copied + size
        shared = ov.Tensor(array, shared_memory=True) if type is None else ov.Tensor(array, list(values.shape), type)
        return op.constant(shared)
