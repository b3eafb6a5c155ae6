"""Llama and its like (Mistral, Qwen2, Qwen3, SmolLM) as one graph: rotary positions, grouped queries, gated layers."""

from typing import Any

import openvino as ov
from openvino import opset13 as op
from torch import Tensor

from dynatree.engine.graph import parts
from dynatree.engine.graph.parts import Gated, Normed, Size, Stack, States, Weights

TYPES = ("llama", "mistral", "qwen2", "qwen3")
ACTIVATION = "silu"


def graph(model: Any, weights: Weights, head: Tensor, size: Size, states: States) -> ov.Model:
    """Inputs and outputs as parts.py says; `head` [v, width]: the rows of the output layer that are wanted."""
    config, base = model.config, model.base_model
    shape = parts.shape(model)
    inputs, nodes = parts.inputs(shape, size, states)
    pool, held = parts.pool(shape, size, len(base.layers))
    layers = [_gated(layer, config.rms_norm_eps) for layer in base.layers]
    weights.alone = parts.fuses(shape, layers, weights)
    y = parts.joined(inputs[0], weights, states)
    y, read = parts.gated_layers(Stack(shape, size, nodes, y, held, layers), weights, states)
    logits = weights.head(parts.asked(y, nodes), head, base.norm.weight, config.rms_norm_eps)
    return ov.Model([op.result(one) for one in (logits, *read)], [*inputs, *pool])


def _gated(layer: Any, eps: float) -> Gated:
    attention, mlp = layer.self_attn, layer.mlp
    return Gated(
        norms=(layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
        qkv=(attention.q_proj, attention.k_proj, attention.v_proj),
        o=attention.o_proj,
        gate_up=(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj,
        normed=_normed(attention, eps),
        eps=eps,
    )


def _normed(attention: Any, eps: float) -> Normed | None:
    """The norms that Qwen3 has of each head; None: there are none."""
    if not hasattr(attention, "q_norm"):
        return None
    return Normed(attention.q_norm.weight, attention.k_norm.weight, eps)
