"""GPT-NeoX (Pythia) as one graph: queries, keys and values from one layer, partly rotated; parallel paths."""

from typing import Any

import openvino as ov
from openvino import opset13 as op
from torch import Tensor

from dynatree.engine.graph import parts
from dynatree.engine.graph.parts import Size, States, Weights

TYPES = ("gpt_neox",)
ACTIVATION = "gelu"


def graph(model: Any, weights: Weights, head: Tensor, size: Size, states: States) -> ov.Model:
    """Inputs and outputs as parts.py says; `head` [v, width]: the rows of the output layer that are wanted."""
    config, base = model.config, model.base_model
    shape = parts.shape(model)
    heads, wide = shape.heads, shape.size
    inputs, nodes = parts.inputs(shape, size, states)
    pool, held = parts.pool(shape, size, len(base.layers))
    y, behind = parts.joined(inputs[0], weights, states), []
    for layer, keys in zip(base.layers, held, strict=True):
        attention = layer.attention
        # Of each head queries, keys and values stand together; here all queries come first.
        fused = attention.query_key_value
        weight = fused.weight.view(heads, 3, wide, -1).transpose(0, 1).reshape(3 * heads * wide, -1)
        bias = None if fused.bias is None else fused.bias.view(heads, 3, wide).transpose(0, 1).reshape(-1)
        z = weights.product(parts.layer_norm(y, layer.input_layernorm), weight, bias)
        mixed = parts.attention(shape, size, nodes, z, keys)
        attended = weights.linear(mixed, attention.dense)
        z = y if config.use_parallel_residual else op.add(y, attended)
        z = weights.linear(parts.layer_norm(z, layer.post_attention_layernorm), layer.mlp.dense_h_to_4h)
        y = op.add(op.add(y, attended), weights.linear(op.gelu(z, "erf"), layer.mlp.dense_4h_to_h))
        behind.append(y)
    y = parts.layer_norm(parts.asked(y, nodes), base.final_layer_norm)
    return ov.Model([weights.head(y, head), *parts.read(behind, states)], [*inputs, *pool])
