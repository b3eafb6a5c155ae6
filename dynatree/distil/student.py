"""A drafter as copies of a few layers of its target, and its trained part apart. Knows no text and no training.

Layer-sharing drafters: Draft & Verify (Zhang et al., ACL 2024, 2309.08168), LayerSkip (Elhoushi et al., ACL 2024,
2404.16710), here trained apart.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynatree.engine.fusion import Fusion
from dynatree.errors import UserError

# How each architecture names its block list and its final norm, below the base model.
_LAYOUT = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("layers", "norm")),
    "gpt_neox": ("layers", "final_layer_norm"),
}


def shrink(target: PreTrainedModel, layers: Sequence[int], norm_scale: float) -> PreTrainedModel:
    """A float32 model of the same kind with copies of `layers` of `target`, its embedding, norm and head.

    The norm is scaled by `norm_scale`: few layers leave hidden states for which the full norm is overconfident.
    Raises UserError for an architecture whose layers it does not know, or a layer that is not there.
    """
    kind = target.config.model_type
    if kind not in _LAYOUT:
        raise UserError(f"distil: architecture {kind!r} is not supported; choose one of {', '.join(_LAYOUT)}")
    blocks, norm = _LAYOUT[kind]
    count = target.config.num_hidden_layers
    if not all(0 <= layer < count for layer in layers):
        raise UserError(f"layers: {list(layers)}; the target has layers 0..{count - 1}")
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    config.dtype = torch.float32
    drafter = type(target)(config).float()
    ours, theirs = drafter.base_model, target.base_model
    for block, layer in zip(getattr(ours, blocks), layers, strict=True):
        block.load_state_dict(getattr(theirs, blocks)[layer].state_dict())
    getattr(ours, norm).load_state_dict(getattr(theirs, norm).state_dict())
    drafter.get_input_embeddings().load_state_dict(target.get_input_embeddings().state_dict())
    drafter.get_output_embeddings().load_state_dict(target.get_output_embeddings().state_dict())
    drafter.generation_config = copy.deepcopy(target.generation_config)
    with torch.no_grad():
        getattr(ours, norm).weight.mul_(norm_scale)
    for embedding in (drafter.get_input_embeddings(), drafter.get_output_embeddings()):
        embedding.requires_grad_(False)
    return drafter


def add_fusion(drafter: PreTrainedModel, target: PreTrainedModel, reads: Sequence[int]) -> None:
    """Let `drafter` (from `shrink`) read the states behind `reads` layers of `target`: the module `fusion` in it.

    Raises UserError for a layer that is not there.
    """
    count = target.config.num_hidden_layers
    if not all(1 <= layer <= count for layer in reads):
        raise UserError(f"reads: {list(reads)}; the target has the states behind 1..{count} layers")
    config = target.config
    eps = config.rms_norm_eps if hasattr(config, "rms_norm_eps") else config.layer_norm_eps
    drafter.fusion = Fusion(len(reads), config.hidden_size, eps)


def trained_part(drafter: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters that training changes, by name: all but embedding and head. They share the drafter's storage."""
    return {name: value.detach() for name, value in drafter.named_parameters() if value.requires_grad}


def load_trained_part(drafter: PreTrainedModel, part: dict[str, Tensor]) -> None:
    """Copy a `trained_part` into `drafter`. Raises UserError if names or shapes are another model's."""
    own = trained_part(drafter)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in part.items()}:
        raise UserError("distil: the trained part has other layers or sizes than the drafter that the target gives")
    for name, value in own.items():
        value.copy_(part[name])
