"""Verification by agreement: the path that autoregressive decoding would have taken. Knows no cache and no drafter."""

from torch import Tensor

from dynatree.generation.logits_processors import greedy_token, greedy_tokens
from dynatree.generation.sampling import Sampler
from dynatree.tree import TokenTree


def verify(tree: TokenTree, logits: Tensor, sampler: Sampler | None = None, position: int = 0) -> tuple[Tensor, int]:
    """(path [1 + accepted], next token) from the target's processed `logits` [n, vocabulary] at the tree's `n` nodes.

    `path` is root first; the next token is the target's own after its last node (Leviathan et
    al. 2023, 2211.17192, section 2, at temperature 0; trees: SpecInfer, Miao et al. 2024, algorithm 2). With a
    `sampler`, the target's token after a node is the one that it draws; `position`: where the root's children stand.
    """
    if sampler is None:
        # A device is waited for once; on a CPU only the rows along the path are looked through.
        of_all = None if logits.is_cpu else greedy_tokens(logits).tolist()
        return tree.accepted_path(of_all.__getitem__ if of_all else lambda node: greedy_token(logits[node]))
    depths = tree.nodes.depths
    return tree.accepted_path(lambda node: sampler.token(logits[node], position + depths[node]))
