"""A token tree as flat tensors, and the pure functions on it: mask, positions, best nodes, accepted path.

Knows no model, no drafter and no policy. All tensors are on the CPU: trees are small and steer Python code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Its index; the other tensors of a tree that is the root alone.
ROOT = torch.zeros(1, dtype=torch.long)
_NO_PARENT, _CERTAIN, _ITSELF = torch.tensor([-1]), torch.zeros(1), torch.ones(1, 1, dtype=torch.bool)


@dataclass(frozen=True)
class TokenTree:
    """`n` nodes in insertion order; node 0 is the root, and every parent precedes its children.

    tokens    [n] int64    token ids
    parents   [n] int64    index of the parent, -1 for the root
    depths    [n] int64    distance from the root, 0 for the root
    log_probs [n] float32  log v(u): sum of the drafter's log-probabilities from the root, 0 for the root
    ancestors [n, n] bool  ancestors[i, j] iff j is i or an ancestor of i
    numbers   [n] int64    index of each node in the tree that this one was cut from; None: it was not cut
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    log_probs: Tensor
    ancestors: Tensor
    numbers: Tensor | None = None

    @staticmethod
    def root(token: int) -> "TokenTree":
        """A tree of one node."""
        return TokenTree(torch.tensor([token]), _NO_PARENT, ROOT, _CERTAIN, _ITSELF)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Depth of the deepest node."""
        return int(self.depths.max())

    def extend(self, parents: Tensor, tokens: Tensor, log_probs: Tensor) -> "TokenTree":
        """The tree with `k` more nodes: `parents` [k], `tokens` [k], path `log_probs` [k]."""
        old, new = len(self), len(tokens)
        ancestors = torch.eye(old + new, dtype=torch.bool)
        ancestors[:old, :old] = self.ancestors
        ancestors[old:, :old] = self.ancestors[parents]
        return TokenTree(
            tokens=torch.cat([self.tokens, tokens]),
            parents=torch.cat([self.parents, parents]),
            depths=torch.cat([self.depths, self.depths[parents] + 1]),
            log_probs=torch.cat([self.log_probs, log_probs]),
            ancestors=ancestors,
        )

    def chain(self, tokens: Tensor, steps: Tensor) -> "TokenTree":
        """The tree of one node with a chain below it: `tokens` [k], log-probabilities `steps` [k] of each step."""
        size = 1 + len(tokens)
        return TokenTree(
            tokens=torch.cat([self.tokens, tokens]),
            parents=torch.arange(-1, size - 1),
            depths=torch.arange(size),
            log_probs=torch.cat([self.log_probs, steps.cumsum(0)]),
            ancestors=torch.ones(size, size, dtype=torch.bool).tril(),
        )

    def grown(self, parents: Sequence[int], tokens: Sequence[int], log_probs: Tensor) -> "TokenTree":
        """As `extend` of several levels at once: `parents` [k] may be new nodes, too, each before its children."""
        # In lists, and below in arrays: between two forwards torch's operations take twice as long.
        old, size = len(self), len(self) + len(tokens)
        ancestors = torch.zeros(size, size, dtype=torch.bool).numpy()
        ancestors[:old, :old] = self.ancestors.numpy()
        depths = self.depths.tolist()
        for node, parent in enumerate(parents, old):
            ancestors[node] = ancestors[parent]
            ancestors[node, node] = True
            depths.append(depths[parent] + 1)
        return TokenTree(
            tokens=torch.tensor([*self.tokens.tolist(), *tokens]),
            parents=torch.tensor([*self.parents.tolist(), *parents]),
            depths=torch.tensor(depths),
            log_probs=torch.cat([self.log_probs, log_probs]),
            ancestors=torch.from_numpy(ancestors),
        )

    def graft(self, parents: Tensor, tokens: Tensor, log_probs: Tensor) -> "TokenTree":
        """As `extend`, but a child that is there already is raised to the larger log v, its descendants with it."""
        if len(self) == 1:
            return self.extend(parents, tokens, log_probs)
        twin = (parents[:, None] == self.parents) & (tokens[:, None] == self.tokens)
        known = twin.any(1)
        if not known.any():
            return self.extend(parents, tokens, log_probs)
        nodes = twin[known].int().argmax(1)
        rise = (log_probs[known] - self.log_probs[nodes]).clamp(min=0)
        raised = self.log_probs + (self.ancestors[:, nodes] * rise).sum(1)
        # Sums round: no node by a hair above those that it hangs from.
        raised = torch.where(self.ancestors, raised, torch.inf).min(1).values
        tree = replace(self, log_probs=raised)
        fresh = ~known
        return tree.extend(parents[fresh], tokens[fresh], log_probs[fresh]) if fresh.any() else tree

    def top(self, count: int | None) -> Tensor:
        """Indices, ascending, of the root and the `count` best other nodes (all for None).

        Best by (log_probs descending, depth ascending, insertion order). log_probs never rise along a path,
        so the set is closed under parents (EAGLE-2, Li et al. 2024, section 4.2; OPT-Tree, Wang et al. 2025).
        """
        if count is None or len(self) <= count + 1:
            return torch.arange(len(self))
        return torch.tensor([0, *sorted(self.ranking()[:count])])

    def ranking(self) -> list[int]:
        """All nodes but the root, best first: by log_probs descending, then depth, then insertion."""
        # A list: of trees this small torch's sorts take a tenth of a millisecond.
        values, depths = self.log_probs.tolist(), self.depths.tolist()
        return sorted(range(1, len(values)), key=lambda node: (-values[node], depths[node]))

    def subtree(self, nodes: Tensor) -> "TokenTree":
        """The tree of `nodes` [m], ascending and closed under parents, renumbered in that order; it keeps `nodes`."""
        if len(nodes) == len(self):
            return self
        if len(nodes) == 1:
            return replace(TokenTree.root(int(self.tokens[0])), numbers=self.before_the_cut(nodes))
        # In arrays: see `grown`.
        kept = nodes.numpy()
        # The last entry is for the parent of the root.
        number = torch.full((len(self) + 1,), -1).numpy()
        number[kept] = range(len(kept))
        tokens, parents, depths, log_probs = (
            part.numpy()[kept] for part in (self.tokens, self.parents, self.depths, self.log_probs)
        )
        return TokenTree(
            tokens=torch.from_numpy(tokens),
            parents=torch.from_numpy(number[parents]),
            depths=torch.from_numpy(depths),
            log_probs=torch.from_numpy(log_probs),
            ancestors=torch.from_numpy(self.ancestors.numpy()[kept][:, kept]),
            numbers=self.before_the_cut(nodes),
        )

    def before_the_cut(self, path: Tensor) -> Tensor:
        """The nodes `path` by their indices in the tree that this one was cut from."""
        return path if self.numbers is None else self.numbers[path]

    def positions(self, prefix_length: int) -> Tensor:
        """Position ids [n] behind `prefix_length` committed tokens: siblings share one (SpecInfer, section 4.2)."""
        return self.depths + prefix_length

    def attention_mask(self, prefix_length: int) -> Tensor:
        """Mask [n, prefix_length + n], True where row may attend to column: the prefix, itself, its ancestors."""
        return torch.cat([torch.ones(len(self), prefix_length, dtype=torch.bool), self.ancestors], dim=1)

    def accepted_path(self, next_token: Callable[[int], int]) -> tuple[Tensor, int]:
        """Indices [1 + accepted] of the accepted path, root first, and the target's token after its last node.

        `next_token` gives the token that the target puts after a node, and is asked along the path alone. A node is
        accepted iff its parent is and it carries the token that the target puts after its parent; siblings are
        distinct, so the path is unique.
        """
        if len(self) == 1:
            return ROOT, next_token(0)
        children = {
            edge: node for node, edge in enumerate(zip(self.parents.tolist(), self.tokens.tolist(), strict=True))
        }
        path, token = [0], next_token(0)
        while (node := children.get((path[-1], token))) is not None:
            path.append(node)
            token = next_token(node)
        return torch.tensor(path), token
