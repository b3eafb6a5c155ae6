"""Attention on a CPU whose query heads share keys and values: the same numbers, without copying keys for every head.

With a mask, as every tree has, transformers repeats keys and values in memory before it calls torch, in each layer of
each forward; torch's CPU kernel reads them where they are. Few new tokens are multiplied here: that kernel works
through them head by head, while the heads that share a key are rows of one product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "dynatree_grouped"
# Given with scores that only transformers' own function, or none, takes into account.
_OTHERS = ("position_bias", "softcap")
# New tokens of a row up to which products are faster than torch's kernel, by 1.1 (one row) to 2 times (several).
_FEW = 12


def install(model: PreTrainedModel) -> None:
    """Let `model` attend by torch's kernels: transformers' `sdpa`, and on a CPU with shared keys `grouped`."""
    if model.config._attn_implementation not in ("sdpa", NAME):
        model.set_attn_implementation("sdpa")
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", 1)
    if model.device.type == "cpu" and getattr(config, "num_key_value_heads", None) not in (None, heads):
        model.set_attn_implementation(NAME)


def grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa`: output [b, n, heads, size] of `query` [b, heads, n, size].

    `key` and `value` are [b, groups, m, size], `attention_mask` [b, 1, n, m] is what is added to the scores, or
    whether they count.
    """
    if attention_mask is None or query.device.type != "cpu" or any(options.get(name) is not None for name in _OTHERS):
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )[0]
        return output, None
    b, heads, n, size = query.shape
    if n > _FEW or dropout or query.dtype.itemsize < 4:  # the kernel adds up half precision in float32
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None
    groups, m = key.shape[1:3]
    rows = query.reshape(b, groups, -1, size) * (size**-0.5 if scaling is None else scaling)
    scores, mask = torch.matmul(rows, key.transpose(2, 3)).view(b, groups, -1, n, m), attention_mask[:, :, None]
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    output = torch.matmul(scores.softmax(-1).view(b, groups, -1, m), value)
    return output.view(b, heads, n, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, sdpa_mask)
