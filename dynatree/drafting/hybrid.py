"""Lookup, model and successors in one tree: lookup gives long confident chains, the model alternatives where text is
new, and a table of successors, where the drafter has one, what takes no forward: below the likeliest nodes, or where
levels were drafted below the last one.

Where what model and table find does not save the time that it takes, rounds rest, and have lookup's nodes alone.

Where two speak of one node, lookup's claim stands for its own token (or the model's, if larger) and the model shares
out the rest: siblings never sum to more than 1.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from dynatree.costs.step_rates import LEAST, StepRates
from dynatree.drafting import Drafter as Part
from dynatree.drafting import lookup, model, successors
from dynatree.drafting.model import Proposals
from dynatree.engine.draft_model import DraftModel
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.request import Request
from dynatree.generation.sampling import DraftNoise
from dynatree.tree import TokenTree

MODEL = "optional"

# Tokens that a match has at least in a round that rests: the next one is seldom right behind fewer.
_AT_REST = 2
# What others are left at least.
_HARDLY = 1e-6


class Drafter:
    """Without a model this is lookup alone."""

    def __init__(
        self, draft_model: DraftModel | None = None, rates: StepRates | None = None, noise: DraftNoise = "shared"
    ):
        self._lookup = lookup.Drafter(rates=rates)
        self._model = model.Drafter(draft_model, rates, noise) if draft_model else None
        # Many nodes that are seldom right are for a policy that chooses among them.
        self._successors = (
            successors.Drafter(draft_model, rates, noise) if draft_model and draft_model.successors else None
        )
        parts: list[Part | None] = [self._lookup, self._model, self._successors]
        self._each = [drafter for drafter in parts if drafter]
        # Whether the last round rested, or asked the table.
        self._rested = self._followed = False

    def start(self, requests: Sequence[Request]) -> None:
        for drafter in self._each:
            drafter.start(requests)

    def propose(self, requests: Sequence[Request], planner: BatchPlanner) -> list[TokenTree]:
        model, table = self._model, self._successors
        if not model:
            return self._lookup.propose(requests, planner)
        self._rested = not planner.looks(requests)
        if self._rested:
            # The model is not asked at all: in decoding each of its steps takes time, though none has anything to do.
            self._followed = False
            return self._lookup.propose(requests, planner, _AT_REST)
        found = self._lookup.propose(requests, planner)
        # Only a policy that weighs costs has the table's nodes.
        growths = [planner.priced(request) for request in requests] if table else []
        priced = [(place, growth) for place, growth in enumerate(growths) if growth]
        self._followed = bool(priced)
        if table:
            for place, growth in priced:
                growth.offered(table.below_root(requests[place], growth))
        trees = model.grow(requests, found, planner, share_out)
        if table:
            for place, growth in priced:
                request = requests[place]
                trees[place] = table.extended(request, trees[place], growth, below_leaves=self.forwards(request) > 0)
        if planner.may_rest(requests):
            planner.looked(requests, [self._at_rest(*pair) for pair in zip(requests, found, strict=True)])
        return trees

    def _at_rest(self, request: Request, found: TokenTree) -> TokenTree:
        """Of what lookup `found`, what a round that rests would have."""
        return found if self._lookup.matched(request) >= _AT_REST else TokenTree.root(request.committed[-1])

    def forwards(self, request: Request) -> int:
        return self._model.forwards(request) if self._model and not self._rested else 0

    @property
    def learns(self) -> bool:
        return self._followed

    def learn(self, request: Request, tree: TokenTree, path: Tensor, logits: Tensor) -> None:
        if self._successors:
            self._successors.learn(request, tree, path, logits)

    def accept(self, request: Request, tree: TokenTree, path: Tensor) -> None:
        # What was not asked has nothing to keep, but for a model that reads its target.
        if self._model and self._rested and not self._model.reads:
            return
        for drafter in self._each:
            drafter.accept(request, tree, path)

    def retain(self, requests: Sequence[Request]) -> None:
        for drafter in self._each:
            drafter.retain(requests)


def share_out(tree: TokenTree, frontier: Sequence[int], proposals: Proposals) -> Proposals:
    """The model's `proposals` below `frontier` [f] beside what lookup claims there."""
    nodes = tree.nodes
    # Below a node lookup has at most one child.
    children = {parent: node for node, parent in enumerate(nodes.parents) if parent in frontier}
    if not children:
        return proposals
    return Proposals(
        proposals.tokens,
        [
            _beside(steps, tokens, nodes.tokens[child], math.exp(nodes.log_probs[child] - nodes.log_probs[node]))
            if (child := children.get(node)) is not None
            else steps
            for node, tokens, steps in zip(frontier, *proposals, strict=True)
        ],
    )


def _beside(steps: Sequence[float], tokens: Sequence[int], looked_up: int, claim: float) -> list[float]:
    """The model's log-probabilities `steps` [b] of `tokens` [b] beside the `claim` for the token `looked_up`."""
    probabilities = [math.exp(step) for step in steps]
    agreed = sum(p for p, token in zip(probabilities, tokens, strict=True) if token == looked_up)
    rest = (1 - max(claim, agreed)) / max(1 - agreed, _HARDLY)
    shared = (p if token == looked_up else p * rest for p, token in zip(probabilities, tokens, strict=True))
    return [math.log(min(max(p, LEAST), 1.0)) for p in shared]
