"""Traversal verification: from the leaves to the root, lossless in distribution (Weng et al. 2025, 2505.12398).

A node u is tried with a rate a: over all draws below it, it is to be accepted with probability a, and the text after
it is then to be the target's, p. So r = a p is what is still to be given out; the root has a = 1. Of the children of u,
drawn from q one after another, x is tried with the rate min(r(x) / q(x), 1). Over all x that gives out min(r, q), and
rejects with probability 1 - sum min(r, q), so that for the next child

    r <- max(r - q, 0) / (1 - sum min(r, q)),   q <- q without x, normalised.

Where no child is left, u is accepted with probability sum r, and the next token is drawn from r; else u is rejected,
and its parent goes on in the same way. A node that nothing was drafted below is a leaf.

This holds without replacement, as what a rejection leaves depends on x in q alone, and q is then what the next child
was drawn from. It holds for trees that were cut, on two conditions. A child that was drawn and cut is tried all the
same, as the round's last token: what is left out because of what it is would be a rejection that nobody counts. And
whether a node is cut depends on nothing drawn below it (`PolicySettings.cuts_from_above`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dynatree.generation.logits_processors import greedy_token
from dynatree.generation.sampling import Draw, Sampler
from dynatree.tree import TokenTree

# What is drawn below a leaf.
_NOTHING = Draw(columns=torch.empty(0, dtype=torch.long), log_probs=torch.empty(0), ids=None)


def verify(
    tree: TokenTree, logits: Tensor, draws: Mapping[int, Draw], sampler: Sampler, position: int
) -> tuple[Tensor, int]:
    """(path [1 + accepted], next token) from the target's processed `logits` [n, vocabulary] at the tree's `n` nodes.

    `path` is root first. `draws`: of the nodes of the tree that this one was cut from, what was drawn below them;
    `position`: where the root's children stand. Raises UserError where the root's logits are not numbers.
    """
    greedy_token(logits[0])
    accepted = _Round(tree, logits, draws, sampler, position).visit(0, 1.0)
    assert accepted is not None, "the root has rate 1"
    return torch.tensor(accepted[0]), accepted[1]


class _Round:
    """One verification, and its random numbers."""

    def __init__(self, tree: TokenTree, logits: Tensor, draws: Mapping[int, Draw], sampler: Sampler, position: int):
        drafted = tree.before_the_cut(torch.arange(len(tree))).tolist()
        self._draws = [draws.get(node, _NOTHING) for node in drafted]
        self._children = tree.children
        self._logits, self._sampler = logits, sampler
        self._uniforms = sampler.uniforms(position)

    def visit(self, node: int, rate: float) -> tuple[list[int], int] | None:
        """The path from `node` on and the token after it, with probability `rate`; None: rejected."""
        rest, draw = rate * self._sampler.probabilities(self._logits[node]), self._draws[node]
        for column, drawn_from in draw.one_by_one():
            token = draw.token(column)
            chance = min(float(rest[token] / drawn_from[column]), 1.0)
            found = self._tried(self._children.get((node, token)), token, chance)
            if found is not None:
                return [node, *found[0]], found[1]
            rest, rate = rejected(rest, rate, drawn_from, draw.ids)
        return ([node], self._drawn(rest)) if self._happens(rate) else None

    def _tried(self, child: int | None, token: int, rate: float) -> tuple[list[int], int] | None:
        """As `visit`, of a child that may have been cut: then it is the last token."""
        if child is not None:
            return self.visit(child, rate)
        return ([], token) if self._happens(rate) else None

    def _happens(self, chance: float) -> bool:
        return next(self._uniforms) < chance

    def _drawn(self, rest: Tensor) -> int:
        """A token by its share of `rest` [vocabulary]."""
        sums = rest.double().cumsum(0)
        place = int(torch.searchsorted(sums, next(self._uniforms) * sums[-1], right=True))
        # A product may round up to the whole sum.
        return min(place, int(rest.nonzero()[-1]))


def rejected(rest: Tensor, rate: float, drawn_from: Tensor, ids: Tensor | None) -> tuple[Tensor, float]:
    """What is left of `rest` [vocabulary], whose sum is `rate`, where a child drawn from `drawn_from` [c] is rejected.

    And its sum. `ids` [c]: the tokens of the columns; None: all, in order.
    """
    columns = slice(None) if ids is None else ids
    left = rest.clone()
    left[columns] = (rest[columns] - drawn_from).clamp(min=0)
    total = float(left.sum())
    rejections = total + (1 - rate)
    # Where the two are equal, it is rounding alone that rejects.
    return (left / rejections, total / rejections) if rejections > 0 else (rest, rate)
