"""Greedy verification: keep the path that plain greedy decoding would have taken. Knows no cache and no drafter."""

import torch
from torch import Tensor

from dynatree.errors import UserError
from dynatree.tree import TokenTree


def greedy_tokens(logits: Tensor) -> Tensor:
    """The argmax [n], on the CPU, of `logits` [n, vocabulary]: in float32, ties to the lowest id, as in `generate`.

    Raises UserError if the first row holds NaN, as overflowing half precision gives: a drafted token that overflows
    leaves its NaN in the whole tree, and the first row is the root, which plain decoding would have fed too.
    """
    scores = logits.float()
    # numpy's is several times as fast as torch's on a CPU, and it promises the first of equal ones.
    best = torch.from_numpy(scores.numpy().argmax(-1)) if scores.is_cpu else scores.argmax(-1).cpu()
    # The largest is NaN where any is.
    if len(best) and scores[0, best[0]].isnan():
        raise UserError(
            f"the target's logits are not numbers ({logits.dtype}): they overflow in half precision, or weights are bad"
        )
    return best


def verify(tree: TokenTree, logits: Tensor) -> tuple[Tensor, int]:
    """(kept [1 + accepted], next token) from the target's `logits` [n, vocabulary] at the tree's `n` nodes.

    `kept` is the accepted path, root first; the next token is the target's own after its last node (Leviathan et
    al. 2023, 2211.17192, section 2, at temperature 0; trees: SpecInfer, Miao et al. 2024, algorithm 2).
    """
    next_tokens = greedy_tokens(logits)
    kept = tree.accepted_path(next_tokens)
    return kept, int(next_tokens[kept[-1]])
