"""A tree out of a table of what the target puts after each token (engine/successors.py), without any forward.

The table begins as it was made on other text and learns from this one: what the target's logits say behind a token that
was accepted is what that token's row is drawn to. Where it has a context (engine/context.py), the target's state at the
position before says which of the table's tokens fit; and where tokens are drawn, those that the noise prefers stand
beside them.

Sources: Token Recycling (Luo et al. 2024, 2408.08696), N-Grammys (Stewart et al. 2024, 2411.03786). Theirs are trees of
one shape, or many chains; here a tree grows best first by how likely its paths are. Where tokens are drawn, children
are ranked by the noise that the target's choice will have, as a drafter model's are.
"""

import math
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynatree.costs.step_rates import LEAST, OnlineCorrection, StepRates, curve, shared
from dynatree.drafting import most_levels
from dynatree.engine.backend import NO_STATES
from dynatree.engine.context import InContext, Words
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.graph.kernels.rows import rows
from dynatree.engine.successors import Successors
from dynatree.errors import UserError
from dynatree.files import SUCCESSORS
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.growth import Growth
from dynatree.generation.logits_processors import LogitsProcessors
from dynatree.generation.request import Request
from dynatree.generation.sampling import DraftNoise, Sampler, gumbel, words_of
from dynatree.tree import TokenTree

MODEL = "required"

# Nodes that a round adds, at most; paths less likely are neither added nor, by the second, gone on from: looking
# one node's children up takes a fifth of a millisecond between forwards, and noise for them half as much again.
_MOST = 32
_ADDED, _EXTENDED = math.log(0.05), 0.45
# Tokens whose logits are further behind the best, less than a hundredth as likely, are not learnt: there are many.
_LEARNT = 4.6
# Stands for the probability 0 of a place that holds nothing (engine/successors.py).
_NOTHING = 1e-30
# A row is the mean of what the table has, as if seen once, and of what came since; of more than so many the last count.
_REMEMBERED = 4
# Tokens that the noise of a position prefers, about so many, stand beside a row's.
_PREFERRED = 64
# Scores are logits but for a constant, which a penalty does not pass over: so much is added
# for it. The target's lie higher, but guesses are less sure than they are (docs/drafter.md).
LEVEL = 12.0


class Drafter:
    """Without step rates the table's own probabilities are taken."""

    learns = True

    def __init__(self, model: DraftModel | None, rates: StepRates | None = None, noise: DraftNoise = "shared"):
        assert model is not None, "the decoder refuses a drafter model that is missing"
        if model.successors is None:
            raise UserError(
                f"{model.name}: it has no {SUCCESSORS}, which `dynatree distil --set labels.successors=32` writes; "
                "take drafting: model or lookup"
            )
        self._table, self._context, self._rates, self._noise = model.successors, model.in_context, rates, noise
        # As long as a request is there: another may begin before it has ended.
        self._followers: WeakKeyDictionary[Request, Follower] = WeakKeyDictionary()

    def start(self, requests: Sequence[Request]) -> None:
        for request in requests:
            rates = self._rates and self._rates.at(request.temperature)
            sampler = request.sampler if self._noise == "shared" else None
            follower = Follower(self._table, rates, request.processors, sampler, self._context)
            follower.read(request.states)
            self._followers[request] = follower

    def propose(self, requests: Sequence[Request], planner: BatchPlanner) -> list[TokenTree]:
        return [
            self.extended(request, TokenTree.root(request.committed[-1]), planner.growth(request))
            for request in requests
        ]

    def forwards(self, request: Request) -> int:
        return 0

    def learn(self, request: Request, tree: TokenTree, path: Tensor, logits: Tensor) -> None:
        follower, plain = self._followers[request], logits.is_cpu and logits.dtype == torch.float32
        # All of them where that is no copy, else the path's.
        rows_of = logits.numpy() if plain else logits[path].float().cpu().numpy()
        for place, node in enumerate(path.tolist()):
            follower.learn(tree.nodes.tokens[node], rows_of[node if plain else place])

    def accept(self, request: Request, tree: TokenTree, path: Tensor) -> None:
        pass  # the next round compares its proposal with what was committed

    def retain(self, requests: Sequence[Request]) -> None:
        pass  # what is held of a request goes with it

    def below_root(self, request: Request, growth: Growth) -> list[float]:
        """How likely the best 1, 2, ... children of the root are together that the table has for it."""
        children = self._follower(request).begin(request.committed, growth.branch)
        return [*accumulate(math.exp(step) for _, step in children)]

    def extended(self, request: Request, tree: TokenTree, growth: Growth, below_leaves: bool = False) -> TokenTree:
        """`tree` and what the table puts below its likeliest nodes, or `below_leaves` alone, best first."""
        follower, most = self._follower(request), most_levels(request, growth)
        follower.begin(request.committed, growth.branch)
        # Lists, not tensors: nodes are looked at one by one.
        tokens, parents, depths, values = ([*part] for part in tree.nodes)
        children: dict[int, list[int]] = {}
        # Of a node that is looked at, the tokens from below the root to it.
        paths: dict[int, tuple[int, ...]] = {0: ()}
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
            for token, step in follower.after(_path(node, tokens, parents, paths), growth.branch, claims):
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
        grown = tree.extend(parents[len(tree) :], tokens[len(tree) :], values[len(tree) :])
        kept = growth.children(tree, values[len(tree) :], [])
        return grown if all(kept) else _cut(grown, [True] * len(tree) + kept)

    def _follower(self, request: Request) -> "Follower":
        """What follows `request`, with the states that its last round has given; the prompt's it has had."""
        follower = self._followers[request]
        if len(request.states):
            follower.read(request.states)
        return follower


def _path(node: int, tokens: list[int], parents: list[int], known: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens from below the root to `node`; those of `known` nodes are, and become, known."""
    if node not in known:
        known[node] = (*_path(parents[node], tokens, parents, known), tokens[node])
    return known[node]


def _cut(tree: TokenTree, kept: Sequence[bool]) -> TokenTree:
    """The nodes `kept` [n] of `tree`, as one that was never larger."""
    return TokenTree(tree.subtree([node for node, one in enumerate(kept) if one]).nodes)


class _Children(NamedTuple):
    """Children of a node, likeliest first, and how likely each is; all together before the request's own correction."""

    tokens: list[int]
    probabilities: list[float]
    stated: float


class _Said(NamedTuple):
    """What the target said behind a token in this text: a mean, with how much of it is `left` for the table."""

    mean: dict[int, float]
    left: float
    times: int


_NOTHING_SAID = _Said({}, 1.0, 0)


class Follower:
    """What the table says in one request, and how far it is trusted there.

    Of its logits processors a repetition penalty counts; what others forbid is rejected when it is verified.
    """

    def __init__(
        self,
        table: Successors,
        rates: StepRates | None,
        processors: LogitsProcessors,
        sampler: Sampler | None,
        context: InContext | None = None,
    ):
        self._table, self._sampler, self._context = table, sampler, context
        self._curves = rates.successors if rates else []
        self._penalty = processors.repetition_penalty
        self._seen = np.zeros(len(table.ids), dtype=bool) if self._penalty != 1 else None
        # By token what was said behind it, and what is not in that yet.
        self._heard: dict[int, _Said] = {}
        self._noted: dict[int, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
        self._online = OnlineCorrection()
        # The committed tokens that were looked at, the last of them, and what was proposed below it.
        self._length, self._root = 0, -1
        self._below_root: list[tuple[int, float]] = []
        # By the tokens from below the root to a node: its children, and the context's hidden state there.
        self._known: dict[tuple[int, ...], _Children] = {}
        self._hidden: dict[tuple[int, ...], NDArray[np.float32]] = {}
        # The target's state before the root.
        self._states = NO_STATES
        self._state: NDArray[np.float32] | None = None
        # Of each common token the largest random word by which it is one of those that noise prefers.
        self._most = words_of(context.preferring(sampler.temperature, _PREFERRED)) if context and sampler else None
        self._library = rows()

    def read(self, states: Tensor) -> None:
        """The target's `states` [n, ...] behind its last layer, side by side with others, ending before the next root.

        None of them: it stays unknown, and the table speaks alone.
        """
        # Of a prompt there are many, which need not be held for the last one.
        self._states = states[-1:].clone() if len(states) > 1 else states

    def begin(self, committed: Sequence[int], branch: int) -> list[tuple[int, float]]:
        """The table's children of the root, likeliest first, at the beginning of a round; learn from what came."""
        if len(committed) == self._length:
            return self._below_root
        if self._below_root:
            below = self._known[()]
            self._online.observe(below.stated, committed[self._length] in below.tokens)
        if self._seen is not None:
            self._seen[committed[self._length :]] = True
        self._length, self._root = len(committed), committed[-1]
        self._known, self._hidden = {}, {}
        if self._context is not None:
            # Here, and not where they are told: most rounds of some texts do not ask.
            self._state = self._states[-1, -self._context.width :].cpu().numpy() if len(self._states) else None
        self._below_root = self.after((), branch, {})
        return self._below_root

    def learn(self, token: int, logits: NDArray[np.float32]) -> None:
        """Note what the target's `logits` [vocabulary] say behind `token`, before any processor."""
        likely = self._library.near(logits, _LEARNT) if self._library else None
        if likely is None:
            (likely,) = (logits > logits.max() - _LEARNT).nonzero()
        self._noted.setdefault(token, []).append((likely, logits[likely]))

    def _said(self, token: int) -> _Said:
        """What was noted behind `token`."""
        found = self._heard.get(token, _NOTHING_SAID)
        # Here, and not where it is noted: most tokens of a text do not come again.
        for likely, logits in self._noted.pop(token, ()):
            times = min(found.times + 1, _REMEMBERED)
            kept = times / (1 + times)
            # In a dictionary: numpy takes twice as long to find what both have.
            mean = {one: p * kept for one, p in found.mean.items()}
            probability = np.exp(logits - np.logaddexp.reduce(logits)) * (1 - kept)
            for one, p in zip(likely.tolist(), probability.tolist(), strict=True):
                mean[one] = mean.get(one, 0.0) + p
            first = sorted(mean.items(), key=lambda item: -item[1])[: self._table.ids.shape[1]]
            found = self._heard[token] = _Said(dict(first), found.left * kept, times)
        return found

    def after(self, path: tuple[int, ...], branch: int, claims: Mapping[int, float]) -> list[tuple[int, float]]:
        """Children of the node to which the tokens `path` lead from below the root: their tokens and steps'
        log-probabilities, likeliest first.

        `claims`: how likely its children are that are there already; the others share the rest.
        """
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = self._looked_up(path, branch)
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

    def _looked_up(self, path: tuple[int, ...], branch: int) -> _Children:
        """The best `branch` tokens behind `path`. On arrays: torch's steps take 0.1 ms more."""
        token, depth = path[-1] if path else self._root, len(path)
        ids, scores = self._table.ids[token], self._table.log_probs[token]
        words = self._sampler.words(self._length + depth, len(self._table.ids)) if self._sampler else None
        if self._context is not None and self._state is not None and depth < self._context.levels:
            ids, scores = self._context.row(token, ids, scores, self._hidden_at(path), words, self._most)
        if (said := self._said(token)).times:
            mean = dict(zip(ids.tolist(), (np.exp(scores) * said.left).tolist(), strict=True))
            for one, p in said.mean.items():
                mean[one] = mean.get(one, 0.0) + p
            ids, scores = np.array([*mean]), np.array([*mean.values()], dtype=np.float32)
            scores = np.log(np.maximum(scores, _NOTHING))
        if self._seen is not None:
            level = scores + LEVEL
            lowered = np.where(level > 0, level / self._penalty, level * self._penalty) - LEVEL
            scores = np.where(self._seen[ids], lowered, scores)
        if self._sampler is not None:
            scores = self._sampler.warpers.warped_row(scores)
        # No more than the table has of each token, whatever stands beside them.
        tokens, steps = self._best(ids, scores, words, min(branch, self._table.ids.shape[1]))
        found = [min(1.0, math.exp(step)) for step in steps]
        ratio = 1.0
        if self._curves:
            ratio, last = self._online.ratio, len(self._curves) - 1
            # A curve may give what was never seen a chance.
            found = [curve(p, *self._curves[min(rank, last)]) if p else p for rank, p in enumerate(found)]
        return _Children(tokens, shared([ratio * p for p in found]), sum(shared(found)))

    def _best(
        self, ids: NDArray[np.int64], scores: NDArray[np.float32], words: Words | None, few: int
    ) -> tuple[list[int], list[float]]:
        """The `few` best of the tokens `ids`, with the noise of `words`, and log-probabilities, best first."""
        # Of what neither noise nor a penalty changed, the rest is with tokens that the row does not have.
        whole = words is not None or self._seen is not None
        if self._library:
            return self._library.best(scores, ids, words, whole, few)
        if words is not None:
            scores = scores + gumbel(words[ids])
        if whole:
            scores = scores - np.logaddexp.reduce(scores)
        order = (-scores).argsort(kind="stable")[:few]
        return ids[order].tolist(), scores[order].tolist()

    def _hidden_at(self, path: tuple[int, ...]) -> NDArray[np.float32]:
        """The context's hidden state at the node behind `path`."""
        found = self._hidden.get(path)
        if found is None:
            context = self._context
            assert context is not None and self._state is not None, "asked for where both are there"
            if path:
                found = context.deeper(self._hidden_at(path[:-1]), len(path) - 1, path[-1])
            else:
                found = context.hidden(self._state, self._root)
            self._hidden[path] = found
        return found
