"""Weights of linear layers reordered once for oneDNN: on a CPU the largest single lever for small batches of tokens.

The operators are those that Inductor's freezing uses; outputs agree with the plain model's up to rounding.
"""

import logging

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

# Tokens of a forward that oneDNN lays the weights out for; decoding stays near it.
_TOKENS = 16
# Of the logits, relative to their spread.
_TOLERANCE = 1e-3


class PackedLinear(nn.Module):
    """`nn.Linear` with its weight in oneDNN's blocked layout; inference only, float32 on the CPU."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # A plain attribute: opaque tensors are neither moved nor saved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TOKENS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., out_features] of `inputs` [..., in_features]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return output


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of the parameters and buffers of `modules`, tied ones counted once, packed ones as oneDNN lays them out."""
    dense = {
        (tensor.data_ptr(), tensor.nbytes) for module in modules for tensor in (*module.parameters(), *module.buffers())
    }
    packed = {id(m.packed): m.packed for module in modules for m in module.modules() if isinstance(m, PackedLinear)}
    return sum(size for _, size in dense) + sum(torch.ops.mkldnn._nbytes(tensor) for tensor in packed.values())


def available(model: nn.Module) -> bool:
    """Whether this torch has the operators and all weights of `model` are float32 on the CPU."""
    operators = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    return operators and torch.backends.mkldnn.is_available() and plain


@torch.inference_mode()
def pack(model: nn.Module, name: str = "model") -> bool:
    """Pack every `nn.Linear` of a causal LM in place, if that is possible here and leaves its logits as they were.

    A tied head keeps the embedding's dense weight beside the packed one. Returns whether the model is packed now;
    where it is not, one log line says why.
    """
    if not available(model):
        return False
    tokens = torch.arange(24)[None] % model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    plain = model(input_ids=tokens, use_cache=False).logits
    if not torch.isfinite(plain).all():
        return False  # such weights are refused with or without packing
    linears = [
        (parent, child, module)
        for parent in model.modules()
        for child, module in parent.named_children()
        if isinstance(module, nn.Linear)
    ]
    try:
        for parent, child, module in linears:
            setattr(parent, child, PackedLinear(module))
        packed = model(input_ids=tokens, use_cache=False).logits
        error, spread = float((packed - plain).abs().max()), float(plain.std())
        reason = None if error <= _TOLERANCE * spread else f"logits differ by {error:.2g} (spread {spread:.2g})"
    except RuntimeError as failure:
        reason = str(failure).splitlines()[0]
    if reason:
        for parent, child, module in linears:
            setattr(parent, child, module)
        log.warning("%s: weights are not packed for oneDNN: %s", name, reason)
        return False
    with torch.inference_mode(False):
        for parameter in model.parameters():
            # A checkpoint is mapped as one file: a weight that still lies in it would keep all of it in memory.
            parameter.data = parameter.data.clone()
    return True
