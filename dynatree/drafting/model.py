"""A cheap language model as drafter: one batched forward per tree level, with draft caches that persist.

The draft cache lags behind the committed tokens (leaves, the target's own tokens and rounds without a draft were never
forwarded here); the first forward of a round feeds all that it lacks. A drafter with a window sees the end of the text
alone: one that was trained on short pieces is right less often after longer ones, and slower.

A drafter that reads its target's states keeps rows of committed tokens alone, which are made of these states. Below
them a node's row is made of the drafter's own output at its parent, and is forgotten when the round is over.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor

from dynatree.costs.step_rates import OnlineCorrection, StepRates
from dynatree.drafting import most_levels
from dynatree.engine.backend import NO_STATES, Cache, Feed, Output, retain
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.graph.kernels.rows import Rows, rows
from dynatree.engine.read_states import ReadStates
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.growth import Growth
from dynatree.generation.logits_processors import NO_PROCESSORS, LogitsProcessors
from dynatree.generation.request import Request
from dynatree.generation.sampling import DraftNoise, Draw, Sampler
from dynatree.tree import TokenTree

MODEL = "required"

# More levels than any tree has.
_ANY = 2**31

# Log-probability of what cannot be: records hold finite numbers.
_NEVER = -1e4


class Proposals(NamedTuple):
    """Children of `f` nodes, `b` of each, likeliest first: their tokens, and log-probabilities of the steps to them."""

    tokens: list[list[int]]
    steps: list[list[float]]


# What is made of the model's own proposals below `frontier` [f] in a tree.
Adjust = Callable[[TokenTree, Sequence[int], Proposals], Proposals]


class Drafter:
    """Proposes the likeliest next tokens of the model (SpecInfer, Miao et al. 2024, section 4: tree attention).

    Where tokens are drawn, the likeliest by the noise that the target's choice will have (Kool et al. 2019), or as
    `noise` says.
    """

    # It goes by what is committed.
    learns = False

    def __init__(self, model: DraftModel | None, rates: StepRates | None = None, noise: DraftNoise = "shared"):
        assert model is not None, "the decoder refuses a drafter model that is missing"
        self._model, self._rates, self._noise = model, rates, noise
        # As long as a request is there: another may begin before it has ended.
        self._drafts: WeakKeyDictionary[Request, Draft] = WeakKeyDictionary()
        self._forwards: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        # Those that it was decoded together with.
        self._batch: WeakKeyDictionary[Request, WeakSet[Request]] = WeakKeyDictionary()

    def start(self, requests: Sequence[Request]) -> None:
        caches = self._model.new_caches(len(requests))
        batch = WeakSet(requests)
        self._batch.update(dict.fromkeys(requests, batch))
        for request, cache in zip(requests, caches, strict=True):
            draft = Draft(
                self._model, cache, self._rates, request.processors, request.sampler, self._noise, request.ends
            )
            before = self._drafts.pop(request.follows, None) if request.follows is not None else None
            draft.begin(request.states, request.reused, before)
            self._drafts[request] = draft

    def propose(self, requests: Sequence[Request], planner: BatchPlanner) -> list[TokenTree]:
        return self.grow(requests, [TokenTree.root(request.committed[-1]) for request in requests], planner)

    def grow(
        self,
        requests: Sequence[Request],
        trees: Sequence[TokenTree],
        planner: BatchPlanner,
        adjust: Adjust | None = None,
    ) -> list[TokenTree]:
        """`trees`, which may hold nodes already, grown level by level; `adjust` has the last word on each step."""
        growths = [planner.growth(request) for request in requests]
        drafts = [self._drafts[request] for request in requests]
        levels = [
            min(most_levels(request, growth), draft.begin_round(request.committed))
            for request, growth, draft in zip(requests, growths, drafts, strict=True)
        ]
        trees, frontiers = [*trees], [[0] for _ in requests]
        self._forwards.update(dict.fromkeys(requests, 0))
        if not any(levels):
            return trees
        growing, level = list(range(len(requests))), 0
        while True:
            for place in growing:
                allowed = frontiers[place] if level < levels[place] else []
                frontiers[place] = growths[place].expand(trees[place], allowed) if allowed else []
            growing, level = [place for place in growing if frontiers[place]], level + 1
            if not growing:
                return trees
            inputs = [drafts[i].draft_inputs(trees[i], frontiers[i], requests[i].text) for i in growing]
            for i, output in zip(growing, self._model.draft_batch(inputs), strict=True):
                tree, frontier, growth = trees[i], frontiers[i], growths[i]
                found = drafts[i].proposals(output, tree, frontier, growth.branch, requests[i].text)
                trees[i] = _grafted(tree, frontier, found if adjust is None else adjust(tree, frontier, found), growth)
                frontiers[i] = [node for node, parent in enumerate(trees[i].nodes.parents) if parent in frontier]
                self._forwards[requests[i]] += 1

    @property
    def reads(self) -> bool:
        """Whether it keeps what the target computed of each token, drafted after or not."""
        return bool(self._model.reads)

    def forwards(self, request: Request) -> int:
        return self._forwards[request]

    def draws(self, request: Request) -> Mapping[int, Draw]:
        """See `DrawingDrafter`."""
        return self._drafts[request].draws

    def learn(self, request: Request, tree: TokenTree, path: Tensor, logits: Tensor) -> None:
        pass

    def accept(self, request: Request, tree: TokenTree, path: Tensor) -> None:
        self._drafts[request].accept(tree.before_the_cut(path), request.states)

    def retain(self, requests: Sequence[Request]) -> None:
        # Of these alone: the draft of a conversation that has its next turn to come is wanted then.
        for request in [request for request in self._batch[requests[0]] if request.finished]:
            self._drafts.pop(request, None)
        retain([self._drafts[request].cache for request in requests])


def _grafted(tree: TokenTree, frontier: Sequence[int], proposals: Proposals, growth: Growth) -> TokenTree:
    """`tree` with those of the `proposals` below `frontier` [f] that the growth keeps."""
    values = tree.nodes.log_probs
    log_probs = [values[node] + step for node, steps in zip(frontier, proposals.steps, strict=True) for step in steps]
    edges = [(node, token) for node, tokens in zip(frontier, proposals.tokens, strict=True) for token in tokens]
    kept = [place for place, one in enumerate(growth.children(tree, log_probs, frontier)) if one]
    parents, tokens = ([edges[place][end] for place in kept] for end in (0, 1))
    return tree.graft(parents, tokens, [log_probs[place] for place in kept])


def first_seen(window: int | None, committed: int, before: int) -> int:
    """First token of the text that is drafted after, if it was `before`, once `committed` tokens are there.

    A text that outgrows the window is cut to half of it and fed afresh: cut by one it would be fed in every round.
    """
    return before if window is None or committed - before <= window else committed - window // 2


class Draft:
    """What the drafter holds of one request: its row of the draft cache, what was proposed and how it turned out."""

    def __init__(
        self,
        model: DraftModel,
        cache: Cache,
        rates: StepRates | None = None,
        processors: LogitsProcessors = NO_PROCESSORS,
        sampler: Sampler | None = None,
        noise: DraftNoise = "shared",
        ends: Collection[int] = (),
    ):
        self.cache = cache
        # Of each node that was drafted below by noise of its own, in this round.
        self.draws: dict[int, Draw] = {}
        self._model, self._processors, self._sampler, self._noise = model, processors, sampler, noise
        self._rates = rates and rates.at(sampler.temperature if sampler else 0)
        self._ends = ends
        # Of each node of this round that the caller's processors were asked of: proposed tokens that they allow there.
        self._allowed: dict[int, set[int]] = {}
        # The committed token that stands first in the cache, and how many of them stand there in this round.
        self._begin = self._prefix = 0
        # The nodes of this round's tree that stand in the cache.
        self._forwarded: list[int] = []
        # Of a drafter that reads: what the target computed of the text, and its own outputs at the last level's nodes.
        self._states: ReadStates | None = None
        self._level: Sequence[int] = []
        self._outputs = NO_STATES
        self._library = rows()
        self._online = OnlineCorrection()
        # Of each node that was drafted below: the tokens and how likely they are together.
        self._proposed: dict[int, tuple[list[int], float]] = {}
        self._awaiting: list[tuple[int, list[int], float]] = []

    def begin(self, states: Tensor, shared: int = 0, before: "Draft | None" = None) -> None:
        """Learn the target's `states` behind the first `shared` tokens, which are those of the text of `before`.

        Its cache is taken over as far as that goes.
        """
        held = 0 if before is None else min(before.cache.length, shared - before._begin)
        if self._model.reads:
            known = self._states = self._known(shared, before)
            # A row takes the state of the position before it.
            self._begin = known.first + 1
            held = held if before is not None and known.first < before._begin + held else 0
            known.append(states)
        if before is not None and held > 0:
            self.cache, self._begin = before.cache, before._begin
            self.cache.crop(held)

    def _known(self, shared: int, before: "Draft | None") -> ReadStates:
        """The states that are known of the first `shared` tokens."""
        known = None if before is None else before._states
        if known is None or not known.first < shared <= known.end:
            return ReadStates(shared, self._model.window)
        known.crop(shared)
        return known

    def begin_round(self, committed: Sequence[int]) -> int:
        """Learn from what was `committed` since the last round that drafted; levels that the drafter's context admits
        now. Not asked in a round that rests."""
        # Scored against what was committed, whether or not the proposals were verified.
        for place, tokens, stated in self._awaiting:
            if place < len(committed):
                self._online.observe(stated, committed[place] in tokens)
        self._awaiting, self.draws, self._allowed = [], {}, {}
        begin = first_seen(self._model.window, len(committed), self._begin)
        if begin != self._begin:
            # Of a text that was cut back there may be fewer states than the window would have.
            self._begin = begin if self._states is None else max(begin, self._states.first + 1)
            self.cache.crop(0)
        seen, limit = len(committed) - self._begin, self._model.context_limit
        # The root is the last committed token, and the last level is not forwarded.
        return _ANY if limit is None else 1 + max(-1, limit - seen)

    def draft_inputs(self, tree: TokenTree, frontier: Sequence[int], text: Tensor) -> Feed:
        """What to feed the model for the children of `frontier` [f]: the lag and the root, or the frontier.

        `text` [t]: what is committed.
        """
        if frontier[0] == 0:
            # The lag ends with the root, which is the last committed token.
            self._prefix = len(text) - self._begin
            self._forwarded = []
            lacked = self._begin + self.cache.length
            before = None if self._states is None else self._model.fused(self._states.since(lacked - 1))
            return Feed(text[lacked:], self.cache, last=1, states=before)
        self._forwarded = [*self._forwarded, *frontier]
        tokens, parents, _, _ = tree.nodes
        before = None
        if self._states is not None:
            # What is expanded are children of the level before.
            before = self._outputs[[self._level.index(parents[node]) for node in frontier]]
        new = torch.tensor([tokens[node] for node in frontier])
        return Feed(new, self.cache, states=before, tree=tree, nodes=self._forwarded)

    def proposals(
        self, output: Output, tree: TokenTree, frontier: Sequence[int], branch: int, text: Tensor
    ) -> Proposals:
        """What is likeliest after `frontier` [f], at most `branch` children of each.

        `output`: what the model gave for the draft inputs. By noise of its own: in the order of drawing.
        """
        self._level, self._outputs = frontier, output.states[-len(frontier) :]
        asked = self._asked(tree, frontier)
        logits = self._processed(output.logits, text, tree, frontier, asked)
        few, positions = min(branch, logits.shape[-1]), [len(text) + tree.nodes.depths[node] for node in frontier]
        if self._sampler and self._noise == "independent":
            tokens, found = self._drawn(logits, frontier, len(text), few)
        elif self._library and logits.is_cpu:
            tokens, found = self._best(self._library, logits, positions, few)
        else:
            tokens, found = self._best_by_torch(logits, positions, few)
        # Rounding may leave a hair above 0, and a path probability must never rise; records hold finite numbers, and
        # where no token is possible, or logits overflowed, there are none.
        steps = [[min(step, 0.0) if step > _NEVER else _NEVER for step in row] for row in found]
        for node, row, of in zip(frontier, tokens, steps, strict=True):
            if node in asked:
                self._allowed[node] = {t for t, step in zip(row, of, strict=True) if step > _NEVER} - {*self._ends}
        if self._rates is None:
            return Proposals(tokens, steps)
        calibrated = [self._rates.calibrated([math.exp(step) for step in row]) for row in steps]
        self._proposed |= {node: (row, sum(of)) for node, row, of in zip(frontier, tokens, calibrated, strict=True)}
        return Proposals(tokens, [[math.log(p) for p in self._online.corrected(row)] for row in calibrated])

    def _best(self, library: Rows, logits: Tensor, positions: Sequence[int], few: int) -> Proposals:
        """The `few` best of `logits` [f, v], by the noise that the target's own choice will have, if it is shared.

        What is best now is what the target is likeliest to draw.
        """
        whole, sampler = self._model.vocabulary, self._sampler
        size = logits.shape[1] if whole is None else self._model.vocabulary_size
        ids = np.arange(size) if whole is None else whole.cpu().numpy()
        found = Proposals([], [])
        for scores, position in zip(logits.float().numpy(), positions, strict=True):
            warped = sampler.warpers.warped_row(scores) if sampler else scores
            words = sampler.words(position, size) if sampler and self._noise == "shared" else None
            tokens, steps = library.best(warped, ids, words, True, few)
            found.tokens.append(tokens)
            found.steps.append(steps)
        return found

    def _best_by_torch(self, logits: Tensor, positions: Sequence[int], few: int) -> Proposals:
        """The same where there is no library, or `logits` [f, v] are on a device."""
        model = self._model
        if self._sampler and self._noise == "shared":
            logits = self._sampler.perturbed(logits, positions, model.vocabulary, model.vocabulary_size)
        elif self._sampler:
            logits = self._sampler.warpers.warped(logits)
        best = torch.log_softmax(logits.float(), dim=-1).topk(few, dim=-1)
        return Proposals(model.token_ids(best.indices.cpu()).tolist(), best.values.tolist())

    def _drawn(self, logits: Tensor, frontier: Sequence[int], length: int, few: int) -> Proposals:
        """So many drawn from `logits` [f, v], in the order of drawing, by noise of the nodes' own."""
        model, sampler = self._model, self._sampler
        assert sampler is not None, "asked where tokens are drawn"
        log_probs = torch.log_softmax(sampler.warpers.warped(logits).float(), dim=-1)
        ranked = log_probs + sampler.below(frontier, length, logits.shape[-1]).to(logits.device)
        columns = ranked.topk(few, dim=-1).indices
        steps = log_probs.gather(-1, columns)
        drawn = zip(columns.cpu(), log_probs.cpu(), strict=True)
        self.draws |= {node: Draw(*row, model.vocabulary) for node, row in zip(frontier, drawn, strict=True)}
        return Proposals(model.token_ids(columns.cpu()).tolist(), steps.tolist())

    def _asked(self, tree: TokenTree, frontier: Sequence[int]) -> set[int]:
        """Those of `frontier` [f] of which the caller's own processors can be asked, where there are any.

        They may refuse a text that they would not have let come about, or that goes on behind its end.
        """
        if not self._processors.further:
            return set()
        tokens, parents, _, _ = tree.nodes
        return {node for node in frontier if not node or tokens[node] in self._allowed.get(parents[node], ())}

    def _processed(
        self, logits: Tensor, text: Tensor, tree: TokenTree, frontier: Sequence[int], asked: set[int]
    ) -> Tensor:
        """`logits` [f, v] at `frontier` [f] by the processors, the caller's own where they are `asked`."""
        processors, columns = self._processors, self._model.columns
        if not processors.further or len(asked) == len(frontier):
            return processors.process(logits, text, tree, frontier, columns)
        found = logits.float()
        for theirs, by in ((False, processors.model_copy(update={"further": ()})), (True, processors)):
            if rows := [row for row, node in enumerate(frontier) if (node in asked) == theirs]:
                found[rows] = by.process(found[rows], text, tree, [frontier[row] for row in rows], columns)
        return found

    def accept(self, path: Tensor, states: Tensor = NO_STATES) -> None:
        """Keep the cache of the accepted nodes `path` (of the drafted tree, root first) that were forwarded.

        `states` [1 + accepted, reads * width]: the target's there, which a drafter that reads keeps in their place.
        """
        if self._proposed:
            self._awaiting = [
                (self._begin + self._prefix + place, *self._proposed[node])
                for place, node in enumerate(path.tolist())
                if node in self._proposed
            ]
            self._proposed = {}
        if self._states is not None:
            self._states.append(states)
            path = path[:0]
        if self._prefix:
            # Forwarded level by level, so the slots of a path are in path order.
            accepted = {*path.tolist()}
            kept = [place for place, node in enumerate(self._forwarded) if node in accepted]
            self.cache.keep(self._prefix, torch.tensor(kept, dtype=torch.long))
            self._prefix = 0  # a round without drafting has nothing to keep
