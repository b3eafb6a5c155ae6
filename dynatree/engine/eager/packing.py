"""Weights of linear layers reordered once for oneDNN: on a CPU the largest single lever for small batches of tokens.

The operators are those that Inductor's freezing uses; outputs agree with the plain model's up to rounding, a drafter's
up to that of bfloat16.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

# Tokens of a forward that oneDNN lays the weights out for; decoding stays near it.
_TOKENS = 16
# Of a row's logits, relative to their spread, by the type of the packed weights.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class PackedLinear(nn.Module):
    """`nn.Linear` with its weight in oneDNN's blocked layout, as `dtype`; inference only, float32 on the CPU.

    With `kept` it holds on to the layer that it takes the place of, for `unpack`.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float32, kept: bool = False):
        super().__init__()
        # In a list, or its weights would count among the packed model's.
        self.original = [linear] if kept else []
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # A copy, a parameter: one that lies in the file would keep the whole file mapped.
        bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._dtype, self._rounded = dtype, dtype != torch.float32
        # A plain attribute: opaque tensors are neither moved nor saved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), _TOKENS)

    def dense_weight(self) -> Tensor:
        """The weight [out_features, in_features] as any module has it, a copy."""
        weight: Tensor = self.packed.to_dense()
        return weight

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As the layer that it takes the place of: a packed model can be saved."""
        if self.original:
            self.original[0]._save_to_state_dict(destination, prefix, keep_vars)
            return
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.dense_weight()

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., out_features] of `inputs` [..., in_features]."""
        if self._rounded:
            inputs = inputs.to(self._dtype)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return output.float() if self._rounded else output


def weight_sizes(*modules: nn.Module) -> dict[Any, int]:
    """Bytes of each of the parameters and buffers of `modules`, tied ones once, packed ones as oneDNN lays them out."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    dense: dict[Any, int] = {(tensor.data_ptr(), tensor.nbytes): tensor.nbytes for tensor in tensors}
    packed = {id(m.packed): m.packed for module in modules for m in module.modules() if isinstance(m, PackedLinear)}
    return dense | {key: int(torch.ops.mkldnn._nbytes(tensor)) for key, tensor in packed.items()}


def available(model: nn.Module) -> bool:
    """Whether this torch has the operators and all weights of `model` are float32 on the CPU."""
    operators = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    return operators and torch.backends.mkldnn.is_available() and plain


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them they are slower than float32."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


@torch.inference_mode()
def pack(model: nn.Module, name: str = "model", rounded: bool = False, kept: bool = False) -> torch.dtype | None:
    """Pack every `nn.Linear` of a causal LM in place, if that is possible here and leaves its logits as they were.

    A tied head keeps the embedding's dense weight beside the packed one. Returns the type of the packed weights, None
    where the model is not packed; a log line says why a type is not taken. `rounded`: logits may be a little off, so
    that bfloat16 will do, half of what float32 reads, where the CPU multiplies that. `kept`: the dense layers are held
    on to, so that `unpack` can put them back.
    """
    if not available(model):
        return None
    tokens = torch.arange(24)[None] % model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    plain = model(input_ids=tokens, use_cache=False).logits
    if not torch.isfinite(plain).all():
        return None  # such weights are refused with or without packing
    for dtype in [torch.bfloat16] * (rounded and multiplies_bfloat16()) + [torch.float32]:
        reason = _pack_as(dtype, model, tokens, plain, kept)
        if reason is None:
            return dtype
        log.warning("%s: weights are not packed for oneDNN as %s: %s", name, str(dtype).removeprefix("torch."), reason)
    return None


def _pack_as(dtype: torch.dtype, model: nn.Module, tokens: Tensor, plain: Tensor, kept: bool) -> str | None:
    """Pack with weights of `dtype` unless that is impossible, or moves the logits `plain` of `tokens`: why not."""
    linears = [
        (parent, child, module)
        for parent in model.modules()
        for child, module in parent.named_children()
        if isinstance(module, nn.Linear)
    ]
    try:
        for parent, child, module in linears:
            setattr(parent, child, PackedLinear(module, dtype, kept))
        packed = model(input_ids=tokens, use_cache=False).logits
        # What all logits of a row share means nothing.
        moved = packed - plain
        error = float((moved - moved.mean(-1, keepdim=True)).abs().max())
        spread = float(plain.std(-1).median())
        reason = None if error <= _TOLERANCE[dtype] * spread else f"logits differ by {error:.2g} (spread {spread:.2g})"
    except RuntimeError as failure:
        reason = str(failure).splitlines()[0]
    if reason:
        for parent, child, module in linears:
            setattr(parent, child, module)
        return reason
    if kept:
        return None
    with torch.inference_mode(False):
        for parameter in model.parameters():
            # A checkpoint is mapped as one file: a weight that still lies in it would keep all of it in memory.
            parameter.data = parameter.data.clone()
    return None


def pack_rounded(module: nn.Module) -> None:
    """Pack the linear layers of a drafter's `module` in place if possible, as bfloat16 where the CPU multiplies it."""
    if not available(module):
        return
    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    for name, layer in list(module.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(module, name, PackedLinear(layer, dtype))


def is_packed(model: nn.Module) -> bool:
    """Whether any layer is."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def unpack(model: nn.Module) -> None:
    """Put back the layers that `pack` held on to, the very objects."""
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, PackedLinear) and module.original:
                setattr(parent, child, module.original[0])
