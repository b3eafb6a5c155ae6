"""Weights as small integers: 8 bits with a scale a row, and 4 bits with a scale and a zero point a group of 32.

Weights that were 4-bit codes once (a Q4_1 file that was read into a checkpoint) are found to be, and keep their values:
w = d q + m in each group. OpenVINO's kernels for 4 bits need whole zero points z; what is left, c = m + z d, is at most
half a step, and is multiplied with the sum of the group's activations: in further columns of the same product.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32
# How far from a whole number of steps a value may lie that once was a code: float32 rounds it by far less.
_ON_GRID = 1e-3


class Codes(NamedTuple):
    """w [o, g, 32] = scale [o, g, 1] (codes - zeros [o, g, 1]) + rest [o, g]; codes and zeros from 0 to 15."""

    codes: Tensor
    scale: Tensor
    zeros: Tensor
    rest: Tensor


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [o, i] and scales [o, 1] of `weight` [o, i]."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


def four_bits(weight: Tensor) -> Codes:
    """Codes of `weight` [o, i], i a multiple of 32: its own where it has at most 16 evenly spaced values a group."""
    w = weight.float().reshape(-1, GROUP)
    low, span = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True) - w.amin(-1, keepdim=True)
    step = _half(span / 15)
    # Most groups use all codes, so that few are left after the first counts.
    left = torch.arange(len(w))[span.squeeze(-1) > 0]
    for count in range(15, 0, -1):
        candidate = span[left] / count
        place = (w[left] - low[left]) / candidate
        fits = (place - place.round()).abs().amax(-1) < _ON_GRID
        # A code's own step is a float16, as GGUF and the kernels hold it; a part or a multiple of it may be none.
        fits &= ((_half(candidate) - candidate).abs() <= 1e-6 * candidate).squeeze(-1)
        step[left[fits]] = _half(candidate[fits])
        left = left[~fits]
    shape = (len(weight), -1, 1)
    codes = ((w - low) / step).round().clamp(0, 15)
    return _with_zeros(codes.view(len(weight), -1, GROUP), step.view(shape), low.view(shape))


def _half(step: Tensor) -> Tensor:
    return step.half().float().clamp(min=6e-8)


def _with_zeros(codes: Tensor, step: Tensor, low: Tensor) -> Codes:
    """Codes from 0, moved up where the zero point would lie below them."""
    lift = torch.minimum((low / step).round().clamp(min=0), 15 - codes.amax(-1, keepdim=True)).clamp(min=0)
    codes, low = codes + lift, low - lift * step
    zeros = (-low / step).round().clamp(0, 15)
    return Codes(codes, step, zeros, (low + zeros * step).squeeze(-1))


def rounded(values: Tensor) -> Codes:
    """`values` [o, g, 32] to 4 bits with whole zero points: the best of a few steps and shifts, by least squares."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    best: list[Tensor] = []
    for factor in (0.88, 0.91, 0.94, 0.97, 1.0, 1.03, 1.06):
        step = ((high - low) / 15 * factor).clamp(min=1e-8).half().float().clamp(min=6e-8)
        for shift in (-0.5, 0, 0.5):
            zeros = (-low / step + shift).round().clamp(0, 15)
            codes = (values / step + zeros).round().clamp(0, 15)
            error = ((codes - zeros) * step - values).square().sum(-1, keepdim=True)
            tried = [error, codes, step, zeros]
            better = error < best[0] if best else torch.ones_like(error, dtype=torch.bool)
            best = [torch.where(better, new, old) for new, old in zip(tried, best or tried, strict=True)]
    return Codes(best[1], best[2], best[3], torch.zeros(values.shape[:2]))


def with_rest(codes: Codes) -> Codes:
    """The same with each row's `rest` as codes of further groups, for products with [activations, sums of a group]."""
    rest = codes.rest
    further = rounded(F.pad(rest, (0, -rest.shape[1] % GROUP)).view(len(rest), -1, GROUP))
    parts = [torch.cat(pair, 1) for pair in zip(codes[:3], further[:3], strict=True)]
    return Codes(parts[0], parts[1], parts[2], torch.zeros(rest.shape[0], parts[0].shape[1]))
