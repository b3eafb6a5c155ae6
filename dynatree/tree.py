"""A token tree, and the pure functions on it: mask, positions, best nodes, accepted path.

Knows no model, no drafter and no policy. It is held in lists, since trees are small and steer Python code: between two
forwards each of torch's operations takes some ten microseconds. Tensors, all on the CPU, are made of them when asked
for.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

# The path of a tree that is the root alone.
ROOT = torch.zeros(1, dtype=torch.long)


class Nodes(NamedTuple):
    """`n` nodes in insertion order; node 0 is the root, and every parent precedes its children.

    tokens     token ids
    parents    index of the parent, -1 for the root
    depths     distance from the root, 0 for the root
    log_probs  log v(u): sum of the drafter's log-probabilities from the root, 0 for the root
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    log_probs: list[float]


class TokenTree:
    """`nodes`, whose lists nobody changes; `numbers` [n]: of each in the tree that this was cut from; None: uncut."""

    def __init__(self, nodes: Nodes, numbers: list[int] | None = None):
        self.nodes, self._numbers = nodes, numbers

    @staticmethod
    def root(token: int) -> "TokenTree":
        """A tree of one node."""
        return TokenTree(Nodes([token], [-1], [0], [0.0]))

    def __len__(self) -> int:
        return len(self.nodes.tokens)

    @cached_property
    def tokens(self) -> Tensor:
        """[n] int64; see `Nodes`."""
        return torch.tensor(self.nodes.tokens)

    @cached_property
    def parents(self) -> Tensor:
        """[n] int64; see `Nodes`."""
        return torch.tensor(self.nodes.parents)

    @cached_property
    def depths(self) -> Tensor:
        """[n] int64; see `Nodes`."""
        return torch.tensor(self.nodes.depths)

    @cached_property
    def log_probs(self) -> Tensor:
        """[n] float32; see `Nodes`."""
        return torch.tensor(self.nodes.log_probs)

    @cached_property
    def ancestors(self) -> Tensor:
        """[n, n] bool: [i, j] iff j is i or an ancestor of i."""
        found = torch.eye(len(self), dtype=torch.bool)
        rows = found.numpy()
        for node, parent in enumerate(self.nodes.parents[1:], start=1):
            rows[node] |= rows[parent]
        return found

    @cached_property
    def paths(self) -> list[list[int]]:
        """Of each node those from below the root to it."""
        found: list[list[int]] = [[]]
        for node, parent in enumerate(self.nodes.parents[1:], start=1):
            found.append([*found[parent], node])
        return found

    @cached_property
    def children(self) -> dict[tuple[int, int], int]:
        """The node below each parent with each token."""
        return {edge: node for node, edge in enumerate(zip(self.nodes.parents, self.nodes.tokens, strict=True))}

    @property
    def depth(self) -> int:
        """Depth of the deepest node."""
        return max(self.nodes.depths)

    def extend(self, parents: Sequence[int], tokens: Sequence[int], log_probs: Sequence[float]) -> "TokenTree":
        """The tree with `k` more nodes: `parents` [k], `tokens` [k], path `log_probs` [k].

        Parents may be new nodes, too, each before its children.
        """
        old = self.nodes
        depths = [*old.depths]
        for parent in parents:
            depths.append(depths[parent] + 1)
        return TokenTree(Nodes([*old.tokens, *tokens], [*old.parents, *parents], depths, [*old.log_probs, *log_probs]))

    def chain(self, tokens: Sequence[int], steps: Sequence[float]) -> "TokenTree":
        """The tree of one node with a chain below it: `tokens` [k], log-probabilities `steps` [k] of each step."""
        return self.extend(range(len(tokens)), tokens, [*accumulate(steps)])

    def graft(self, parents: Sequence[int], tokens: Sequence[int], log_probs: Sequence[float]) -> "TokenTree":
        """As `extend`, but a child that is there already is raised to the larger log v, its descendants with it."""
        if len(self) == 1:
            return self.extend(parents, tokens, log_probs)
        new = [*zip(parents, tokens, log_probs, strict=True)]
        known = {self.children[parent, token]: v for parent, token, v in new if (parent, token) in self.children}
        if not known:
            return self.extend(parents, tokens, log_probs)
        old = self.nodes
        # How much each node rises with those that it hangs from.
        rises, raised = [0.0], [0.0]
        for node in range(1, len(self)):
            above, value = old.parents[node], old.log_probs[node]
            rises.append(rises[above] + max(0.0, known.get(node, value) - value))
            # Sums round: no node by a hair above those that it hangs from.
            raised.append(min(value + rises[node], raised[above]))
        fresh = [one for one in new if one[:2] not in self.children]
        tree = TokenTree(old._replace(log_probs=raised))
        return tree.extend([one[0] for one in fresh], [one[1] for one in fresh], [one[2] for one in fresh])

    def top(self, count: int | None) -> list[int]:
        """Indices, ascending, of the root and the `count` best other nodes (all for None).

        Best by (log_probs descending, depth ascending, insertion order). log_probs never rise along a path,
        so the set is closed under parents (EAGLE-2, Li et al. 2024, section 4.2; OPT-Tree, Wang et al. 2025).
        """
        if count is None or len(self) <= count + 1:
            return [*range(len(self))]
        return [0, *sorted(self.ranking()[:count])]

    def ranking(self) -> list[int]:
        """All nodes but the root, best first: by log_probs descending, then depth, then insertion."""
        values, depths = self.nodes.log_probs, self.nodes.depths
        return sorted(range(1, len(values)), key=lambda node: (-values[node], depths[node]))

    def subtree(self, nodes: Sequence[int]) -> "TokenTree":
        """The tree of `nodes` [m], ascending and closed under parents, renumbered in that order; it keeps `nodes`."""
        if len(nodes) == len(self):
            return self
        number = dict(zip(nodes, range(len(nodes)), strict=True))
        number[-1] = -1
        tokens, parents, depths, log_probs = self.nodes
        found = Nodes(
            [tokens[node] for node in nodes],
            [number[parents[node]] for node in nodes],
            [depths[node] for node in nodes],
            [log_probs[node] for node in nodes],
        )
        return TokenTree(found, [node if self._numbers is None else self._numbers[node] for node in nodes])

    def before_the_cut(self, path: Tensor) -> Tensor:
        """The nodes `path` by their indices in the tree that this one was cut from."""
        return path if self._numbers is None else torch.tensor([self._numbers[node] for node in path.tolist()])

    def positions(self, prefix_length: int) -> Tensor:
        """Position ids [n] behind `prefix_length` committed tokens: siblings share one (SpecInfer, section 4.2)."""
        return torch.tensor([prefix_length + depth for depth in self.nodes.depths])

    def attention_mask(self, prefix_length: int) -> Tensor:
        """Mask [n, prefix_length + n], True where row may attend to column: the prefix, itself, its ancestors."""
        mask = torch.ones(len(self), prefix_length + len(self), dtype=torch.bool)
        mask[:, prefix_length:] = self.ancestors
        return mask

    def accepted_path(self, next_token: Callable[[int], int], ends: Collection[int] = ()) -> tuple[Tensor, int]:
        """Indices [1 + accepted] of the accepted path, root first, and the target's token after its last node.

        `next_token` gives the token that the target puts after a node, and is asked along the path alone; after one of
        `ends`, which end a text, nothing is asked, as in autoregressive decoding: it is given again. A node is
        accepted iff its parent is and it carries the token that the target puts after its parent; siblings are
        distinct, so the path is unique.
        """
        path, token = [0], next_token(0)
        while (node := self._child(path[-1], token)) is not None:
            path.append(node)
            if token in ends:
                break
            token = next_token(node)
        return torch.tensor(path) if len(path) > 1 else ROOT, token

    def _child(self, parent: int, token: int) -> int | None:
        """The node below `parent` with `token`, if any; of few nodes sooner found than all edges are listed."""
        tokens, parents, _, _ = self.nodes
        behind = range(parent + 1, len(tokens))
        return next((node for node in behind if tokens[node] == token and parents[node] == parent), None)
