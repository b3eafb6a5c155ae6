"""Greedy verification: the path that autoregressive decoding would have taken. Knows no cache and no drafter."""

from torch import Tensor

from dynatree.generation.logits_processors import greedy_tokens
from dynatree.tree import TokenTree


def verify(tree: TokenTree, logits: Tensor) -> tuple[Tensor, int]:
    """(path [1 + accepted], next token) from the target's `logits` [n, vocabulary] at the tree's `n` nodes.

    `path` is root first; the next token is the target's own after its last node (Leviathan et
    al. 2023, 2211.17192, section 2, at temperature 0; trees: SpecInfer, Miao et al. 2024, algorithm 2).
    """
    next_tokens = greedy_tokens(logits)
    path = tree.accepted_path(next_tokens)
    return path, int(next_tokens[path[-1]])
