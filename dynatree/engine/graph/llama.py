"""Llama and its like (Mistral, Qwen2, Qwen3, SmolLM) as one graph: rotary positions, grouped queries, gated layers."""

from typing import Any

import openvino as ov
from openvino import opset13 as op
from torch import Tensor

from dynatree.engine.graph import parts
from dynatree.engine.graph.parts import Normed, Size, States, Weights

TYPES = ("llama", "mistral", "qwen2", "qwen3")
ACTIVATION = "silu"


def graph(model: Any, weights: Weights, head: Tensor, size: Size, states: States) -> ov.Model:
    """Inputs and outputs as parts.py says; `head` [v, width]: the rows of the output layer that are wanted."""
    config, base = model.config, model.base_model
    shape = parts.shape(model)
    inputs, nodes = parts.inputs(shape, size, states)
    y, behind = parts.joined(inputs[0], weights, states), []
    for layer in base.layers:
        attention, pool = layer.self_attn, parts.pool(shape, size)
        inputs += pool
        z = parts.rms_norm(y, layer.input_layernorm.weight, config.rms_norm_eps)
        z = weights.linear(z, attention.q_proj, attention.k_proj, attention.v_proj)
        mixed = parts.attention(shape, size, nodes, z, pool, _normed(attention, config.rms_norm_eps))
        y = op.add(y, weights.linear(mixed, attention.o_proj))
        z = parts.rms_norm(y, layer.post_attention_layernorm.weight, config.rms_norm_eps)
        z = weights.linear(z, layer.mlp.gate_proj, layer.mlp.up_proj)
        inner = config.intermediate_size
        gate, up = op.variadic_split(z, op.constant(1), parts.whole(inner, inner)).outputs()
        y = op.add(y, weights.linear(op.multiply(op.swish(gate), up), layer.mlp.down_proj))
        behind.append(y)
    y = parts.rms_norm(parts.asked(y, nodes), base.norm.weight, config.rms_norm_eps)
    return ov.Model([weights.head(y, head), *parts.read(behind, states)], inputs)


def _normed(attention: Any, eps: float) -> Normed | None:
    """The norms that Qwen3 has of each head; None: there are none."""
    if not hasattr(attention, "q_norm"):
        return None
    return Normed(attention.q_norm.weight, attention.k_norm.weight, eps)
