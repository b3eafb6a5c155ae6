"""A tree out of a table of what the target puts after each token (engine/successors.py), without any forward.

The table begins as it was made on other text and learns from this one: what the target's logits say behind a token that
was accepted is what that token's row is drawn to.

Sources: Token Recycling (Luo et al. 2024, 2408.08696), N-Grammys (Stewart et al. 2024, 2411.03786). Theirs are trees of
one shape, or many chains; here a tree grows best first by how likely its paths are. Where tokens are drawn, children
are ranked by the noise that the target's choice will have, as a drafter model's are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynatree.costs.step_rates import LEAST, MOST, OnlineCorrection, StepRates, curve
from dynatree.drafting import most_levels
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.successors import Successors
from dynatree.errors import UserError
from dynatree.files import SUCCESSORS
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.growth import Growth
from dynatree.generation.logits_processors import LogitsProcessors
from dynatree.generation.request import Request
from dynatree.generation.sampling import DraftNoise, Sampler
from dynatree.tree import ROOT, TokenTree

MODEL = "required"

# Nodes that a round adds, at most; paths less likely are neither added nor, by the second, gone on from: looking
# one node's children up takes 80 microseconds between forwards, and noise for them half as much again.
_MOST = 32
_ADDED, _EXTENDED = math.log(0.05), 0.25
# Tokens whose logits are further behind the best, less than a hundredth as likely, are not learnt: there are many.
_LEARNT = 4.6
# Stands for the probability 0 of a place that holds nothing (engine/successors.py).
_NOTHING = 1e-30
# A row is the mean of what the table has, as if seen once, and of what came since; of more than so many the last count.
_REMEMBERED = 4
# Scores are logits but for a constant, which a penalty does not pass over: the target's lie about so far above 0.
LEVEL = 8.0


class Drafter:
    """Without step rates the table's own probabilities are taken."""

    def __init__(self, model: DraftModel | None, rates: StepRates | None = None, noise: DraftNoise = "shared"):
        assert model is not None, "the decoder refuses a drafter model that is missing"
        if model.successors is None:
            raise UserError(
                f"{model.name}: it has no {SUCCESSORS}, which `dynatree distil --set labels.successors=32` writes; "
                "take drafting: model or lookup"
            )
        self._table, self._rates, self._noise = model.successors, rates, noise
        # As long as a request is there: another may begin before it has ended.
        self._followers: WeakKeyDictionary[Request, Follower] = WeakKeyDictionary()

    def start(self, requests: Sequence[Request]) -> None:
        for request in requests:
            rates = self._rates and self._rates.at(request.temperature)
            sampler = request.sampler if self._noise == "shared" else None
            self._followers[request] = Follower(self._table, rates, request.processors, sampler)

    def propose(self, requests: Sequence[Request], planner: BatchPlanner) -> list[TokenTree]:
        return [
            self.extended(request, TokenTree.root(request.committed[-1]), planner.growth(request))
            for request in requests
        ]

    def forwards(self, request: Request) -> int:
        return 0

    def learn(self, request: Request, tree: TokenTree, path: Tensor, logits: Tensor) -> None:
        follower = self._followers[request]
        for node, token in zip(path.tolist(), tree.tokens[path].tolist(), strict=True):
            follower.learn(token, logits[node])

    def accept(self, request: Request, tree: TokenTree, path: Tensor) -> None:
        pass  # the next round compares its proposal with what was committed

    def retain(self, requests: Sequence[Request]) -> None:
        pass  # what is held of a request goes with it

    def below_root(self, request: Request, growth: Growth) -> list[float]:
        """How likely the best 1, 2, ... children of the root are together that the table has for it."""
        children = self._followers[request].begin(request.committed, growth.branch)
        return [*accumulate(math.exp(step) for _, step in children)]

    def extended(self, request: Request, tree: TokenTree, growth: Growth, below_leaves: bool = False) -> TokenTree:
        """`tree` and what the table puts below its likeliest nodes, or `below_leaves` alone, best first."""
        follower, most = self._followers[request], most_levels(request, growth)
        follower.begin(request.committed, growth.branch)
        # Lists, not tensors: nodes are looked at one by one.
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
        values, depths = tree.log_probs.tolist(), tree.depths.tolist()
        children: dict[int, list[int]] = {}
        # How likely each node is whose child is none that is there.
        open_ends = [math.exp(value) for value in values]
        for node in range(1, len(tree)):
            children.setdefault(parents[node], []).append(node)
            open_ends[parents[node]] -= math.exp(values[node])
        heap = [
            (-end, node)
            for node, end in enumerate(open_ends)
            if end >= _EXTENDED and depths[node] < most and not (below_leaves and node in children)
        ]
        heapify(heap)
        while heap and len(tokens) < len(tree) + _MOST:
            _, node = heappop(heap)
            claims = {tokens[child]: math.exp(values[child] - values[node]) for child in children.get(node, ())}
            for token, step in follower.after(tokens[node], depths[node], growth.branch, claims):
                value = values[node] + step
                if value < _ADDED:
                    continue
                if math.exp(value) >= _EXTENDED and depths[node] + 1 < most:
                    heappush(heap, (-math.exp(value), len(tokens)))
                tokens.append(token)
                parents.append(node)
                values.append(value)
                depths.append(depths[node] + 1)
        if len(tokens) == len(tree):
            return tree
        grown = tree.grown(parents[len(tree) :], tokens[len(tree) :], torch.tensor(values[len(tree) :]))
        kept = growth.children(tree, grown.log_probs[len(tree) :], ROOT[:0])
        return grown if kept.all() else _cut(grown, torch.cat([torch.ones(len(tree), dtype=torch.bool), kept]))


def _cut(tree: TokenTree, kept: Tensor) -> TokenTree:
    """The nodes `kept` [n] of `tree`, as one that was never larger."""
    return replace(tree.subtree(kept.nonzero().squeeze(1)), numbers=None)


class _Children(NamedTuple):
    """Children of a node, likeliest first, and how likely each is; all together before the request's own correction."""

    tokens: list[int]
    probabilities: list[float]
    stated: float


class Follower:
    """What the table says in one request, and how far it is trusted there.

    Of its logits processors a repetition penalty counts; what others forbid is rejected when it is verified.
    """

    def __init__(
        self, table: Successors, rates: StepRates | None, processors: LogitsProcessors, sampler: Sampler | None
    ):
        self._table, self._sampler = table, sampler
        self._curves = rates.successors if rates else []
        self._penalty = processors.repetition_penalty
        self._seen = np.zeros(len(table.ids), dtype=bool) if self._penalty != 1 else None
        # By token: the row that came of the table's with how often it was seen, and what is not in it yet.
        self._rows: dict[int, tuple[NDArray[np.int64], NDArray[np.float32], int]] = {}
        self._noted: dict[int, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
        self._online = OnlineCorrection()
        # The committed tokens that were looked at, and what was proposed below the last of them.
        self._length = 0
        self._below_root: list[tuple[int, float]] = []
        self._known: dict[tuple[int, int], _Children] = {}

    def begin(self, committed: Sequence[int], branch: int) -> list[tuple[int, float]]:
        """The table's children of the root, likeliest first, at the beginning of a round; learn from what came."""
        if len(committed) == self._length:
            return self._below_root
        if self._below_root:
            below = self._known[committed[self._length - 1], 0]
            self._online.observe(below.stated, committed[self._length] in below.tokens)
        if self._seen is not None:
            self._seen[committed[self._length :]] = True
        self._length, self._known = len(committed), {}
        self._below_root = self.after(committed[-1], 0, branch, {})
        return self._below_root

    def learn(self, token: int, logits: Tensor) -> None:
        """Note what the target's `logits` [vocabulary] say behind `token`, before any processor."""
        row = logits.float().cpu().numpy()
        (likely,) = (row > row.max() - _LEARNT).nonzero()
        self._noted.setdefault(token, []).append((likely, row[likely]))

    def _row(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens after `token` and their scores: the table's, drawn to what was noted."""
        ids, scores, seen = self._rows.get(token) or (self._table.ids[token], self._table.log_probs[token], 0)
        # Here, and not where it is noted: most tokens of a text do not come again.
        for likely, logits in self._noted.pop(token, ()):
            seen = min(seen + 1, _REMEMBERED)
            probability = np.exp(logits - np.logaddexp.reduce(logits)) / (1 + seen)
            # In a dictionary: numpy takes twice as long to find what both have.
            mean = dict(zip(ids.tolist(), (np.exp(scores) * (seen / (1 + seen))).tolist(), strict=True))
            for one, p in zip(likely.tolist(), probability.tolist(), strict=True):
                mean[one] = mean.get(one, 0.0) + p
            first = sorted(mean.items(), key=lambda item: -item[1])[: self._table.ids.shape[1]]
            ids, scores = np.array([one for one, _ in first]), np.array([p for _, p in first], dtype=np.float32)
            scores = np.log(scores.clip(min=_NOTHING))
            self._rows[token] = ids, scores, seen
        return ids, scores

    def after(self, token: int, depth: int, branch: int, claims: Mapping[int, float]) -> list[tuple[int, float]]:
        """Children of a node at `depth` with this `token`: their tokens and steps' log-probabilities, likeliest first.

        `claims`: how likely its children are that are there already; the others share the rest.
        """
        found = self._known.get((token, depth))
        if found is None:
            found = self._known[token, depth] = self._looked_up(token, depth, branch)
        tokens, probabilities, _ = found
        if not claims:
            return [(one, math.log(p)) for one, p in zip(tokens, probabilities, strict=True)]
        agreed = sum(p for one, p in zip(tokens, probabilities, strict=True) if one in claims)
        rest = max(0.0, 1 - max(sum(claims.values()), agreed)) / max(1e-6, 1 - agreed)
        return [
            (one, math.log(max(LEAST, p * rest)))
            for one, p in zip(tokens, probabilities, strict=True)
            if one not in claims
        ]

    def _looked_up(self, token: int, depth: int, branch: int) -> _Children:
        """The best `branch` tokens after `token`. On arrays: torch's steps take 0.1 ms more."""
        ids, scores = self._row(token)
        if self._seen is not None:
            level = scores + LEVEL
            lowered = np.where(level > 0, level / self._penalty, level * self._penalty) - LEVEL
            scores = np.where(self._seen[ids], lowered, scores)
        if self._sampler is not None:
            scores = self._sampler.perturbed_some(scores, self._length + depth, ids, len(self._table.ids))
        if self._sampler is not None or self._seen is not None:
            order = np.argsort(-scores, kind="stable")[:branch]
            # Of what no processor and no noise changed, the rest is with tokens that the table does not have.
            scores, ids = scores[order] - np.logaddexp.reduce(scores), ids[order]
        found = [min(1.0, math.exp(score)) for score in scores[:branch].tolist()]
        ratio = 1.0
        if self._curves:
            ratio, last = self._online.ratio, len(self._curves) - 1
            # A curve may give what was never seen a chance.
            found = [curve(p, *self._curves[min(rank, last)]) if p else p for rank, p in enumerate(found)]
        return _Children(ids[:branch].tolist(), _shared([ratio * p for p in found]), sum(_shared(found)))


def _shared(found: Sequence[float]) -> list[float]:
    """Probabilities of siblings, kept from 0 and 1, that sum to at most 1."""
    kept = [min(max(p, LEAST), MOST) for p in found]
    total = max(1.0, sum(kept))
    return [p / total for p in kept]
