"""Verification by agreement: the path that autoregressive decoding would have taken. Knows no cache and no drafter."""

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from dynatree.generation.logits_processors import greedy_token, greedy_tokens
from dynatree.generation.sampling import Sampler
from dynatree.tree import TokenTree

# What logits processors make of rows [k, vocabulary] at some nodes [k] of a tree; None: the rows are of all.
Process = Callable[[Tensor, Sequence[int] | None], Tensor]


def verify(
    tree: TokenTree,
    logits: Tensor,
    sampler: Sampler | None = None,
    position: int = 0,
    process: Process | None = None,
    ends: Collection[int] = (),
) -> tuple[Tensor, int]:
    """(path [1 + accepted], next token) from the target's `logits` [n, vocabulary] at the tree's `n` nodes.

    `path` is root first; the next token is the target's own after its last node (Leviathan et
    al. 2023, 2211.17192, section 2, at temperature 0; trees: SpecInfer, Miao et al. 2024, algorithm 2). With a
    `sampler`, the target's token after a node is the one that it draws; `position`: where the root's children stand.
    `process`: logits are processed first. `ends`: tokens behind which nothing is asked, since the text ends there.
    """
    if sampler is None and not logits.is_cpu:
        # A device is waited for once.
        return tree.accepted_path(
            greedy_tokens(process(logits, None) if process else logits).tolist().__getitem__, ends
        )

    # The rows along the path alone: most drafted nodes are rejected.
    def row(node: int) -> Tensor:
        return process(logits[node : node + 1], [node])[0] if process else logits[node]

    if sampler is None:
        return tree.accepted_path(lambda node: greedy_token(row(node)), ends)
    depths = tree.nodes.depths
    return tree.accepted_path(lambda node: sampler.token(row(node), position + depths[node]), ends)
