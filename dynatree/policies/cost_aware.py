"""DynaTree's default: verify the nodes whose expected gain pays for their time, and draft only where that pays too.

A node is worth v times the seconds that its token would take otherwise. Where a chain of its step probability c went
on for ever, decoding would make s(c) = max_n (1 + c + ... + c^n) / t(1 + n) tokens a second, so that is 1 / s(c): a
token of a loop is cheap to get later, one of new text costs an autoregressive step. Verified are the best n nodes by
v, with n maximising the sum of their worth minus t(1 + n); all times come from a measured table. Where the drafter is
asked whether a level pays, s counts the levels of such a chain, too: what it would find is not to be had for less.

Global top-N by v: EAGLE-2 (Li et al., EMNLP 2024, 2406.16858), OPT-Tree (Wang et al., TACL 2025, 2406.17276); cost:
CAST (2510.26577), Yggdrasil (2512.23858), SmartSpec (Liu et al. 2024, 2406.14066). The worth is this project's own.
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynatree import plugins
from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import MOST_NODES, CostTable, at_least
from dynatree.generation.growth import Growth
from dynatree.policies import PolicySettings, steps_below
from dynatree.tree import TokenTree

# How fast old rounds stop counting for what a level of drafting yields.
_YIELD_FADE = 0.9
# Rounds without a draft after which one is tried anyway: twice as many after each that was in vain, so often. Before it
# the drafter is fed what came since, which takes 1 to 2 in 100 of the time that passed then.
_PROBE_EVERY = 256
_PROBE_DOUBLED = 2
_UNMEASURED_DEPTH = 8
# Rounds without nodes behind which these take the whole of what a switch takes; behind fewer in proportion.
_MANY = 32
# Steps of probability in the table of seconds a token.
_GRID = 200


class _Seconds(NamedTuple):
    """Near one context: of rounds of 0..n nodes, of drafting over 0..w tokens, of a token by its step probability.

    `at_least`: of verifying n nodes or more (cost_table.py). `switch`: what nodes take more behind many rounds without.
    `level`: of the cheapest draft. Of a token: `tokens` where chains come for nothing, `drafted` where each of theirs
    takes a level, both behind a round with nodes and behind many without.
    """

    verify: list[float]
    at_least: list[float]
    switch: float
    draft: list[float] | None
    level: float
    drafted: tuple[list[float], list[float]]
    tokens: tuple[list[float], list[float]]


class _Table:
    """The seconds of `costs` near each context, for up to `most` nodes."""

    def __init__(self, costs: CostTable, most: int):
        self.costs, self.most = costs, most
        self._known: dict[tuple[int, int], _Seconds] = {}

    def near(self, context: int) -> _Seconds:
        draft_curve = self.costs.draft
        place = self.costs.verify.nearest(context), draft_curve.nearest(context) if draft_curve else 0
        if place not in self._known:
            # A token that would take an autoregressive step takes what that has besides its forward, too.
            verify = self.costs.verify.at(context, 1 + self.most)[1:] + self.costs.beside
            draft = draft_curve.at(context, MOST_NODES) if draft_curve else None

            def tokens(level: float) -> tuple[list[float], list[float]]:
                among, behind = (seconds_per_token(verify, level, more) for more in (0.0, self.costs.switch))
                return among.tolist(), behind.tolist()

            self._known[place] = _Seconds(
                verify.tolist(),
                at_least(verify).tolist(),
                self.costs.switch,
                draft if draft is None else draft.tolist(),
                0.0 if draft is None else float(draft[1:].min()),
                ([], []) if draft is None else tokens(float(draft[1])),
                tokens(0.0),
            )
        return self._known[place]


# Of the last costs that were asked for: a batch's requests go by the same, and a table takes most of a millisecond.
_TABLES: deque[_Table] = deque(maxlen=16)


def _table_of(costs: CostTable, most: int) -> _Table:
    # A copy: another thread may add to it.
    known = next((one for one in tuple(_TABLES) if one.costs is costs and one.most == most), None)
    if known is None:
        _TABLES.append(known := _Table(costs, most))
    return known


class Policy(PolicySettings):
    """`depth`, `branch`, `threshold` (tau, on v) and `budget` (N) are limits; None: no threshold, or 127 nodes.

    If `calibrated`, the drafter's step probabilities are calibrated first, and v is their product. What a level yields
    before any was seen is measured either way.
    """

    depth: int = Field(ge=0, le=MOST_NODES)  # most levels (D)
    branch: int = Field(ge=1, le=64)  # most children of a node (B)
    threshold: float | None = Field(ge=0, le=1)  # least path probability of a node (tau); null: any
    budget: int | None = Field(ge=0, le=MOST_NODES)  # most nodes verified (N), the root apart; null: 127
    calibrated: bool = True  # correct the drafter's probabilities by what was measured

    needs_costs: ClassVar[bool] = True

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        self.without_costs()  # refuses what leaves its tree without bound
        return self

    def without_costs(self) -> PolicySettings:
        """The policy that takes over where nothing was measured: no deeper than is usual there."""
        policy: PolicySettings = plugins.load("policies", "threshold").Policy(
            depth=min(self.depth, _UNMEASURED_DEPTH),
            branch=self.branch,
            threshold=self.threshold,
            budget=self.budget,
        )
        return policy

    @property
    def most(self) -> int:
        """Most nodes besides the root."""
        return MOST_NODES if self.budget is None else self.budget

    @property
    def uses_calibration(self) -> bool:
        return self.calibrated

    def start(self, calibration: Calibration | None, context: int) -> Growth:
        assert calibration is not None, "the decoder gives this policy a table, or takes another policy"
        return _Growth(self, calibration, context)


class _Growth:
    """What one request has learnt of its drafts, and the seconds near its present length."""

    def __init__(self, policy: Policy, calibration: Calibration, context: int):
        self._policy, self._most = policy, policy.most
        # Of each level [branch]: how likely its best 1, 2, ... children are together, below one node, moving means that
        # begin with how often they were right on other text.
        measured = [min(1.0, hit) for hit in accumulate(calibration.step_rates.rates)][: policy.branch]
        self._yield = [self._each(measured)] * (policy.depth + 1)
        # What other children, which take no level, yield in place of them: a moving mean, and of how many rounds.
        self._offered, self._offers = [0.0] * policy.branch, 0
        # Rounds of this request, which those of a batch count alike, and those since its last draft.
        self._round = self._idle = 0
        # Drafts in a row that were tried though none was due, and whether this round's is one.
        self._in_vain, self._tried = 0, False
        # Tokens that the next level has to feed the drafter: at first the whole text and the root.
        self._lag = context + 1
        # Rounds since the last one that verified nodes.
        self._without = 0
        # What levels would have gained since the last one, had there been nothing else to feed.
        self._forgone = 0.0
        self._context = context
        self.set_costs(calibration)

    @property
    def branch(self) -> int:
        return self._policy.branch

    @property
    def depth(self) -> int:
        return self._policy.depth

    @property
    def step(self) -> float:
        return self._seconds.verify[0]

    @property
    def level(self) -> float:
        return self._seconds.level

    @property
    def drafting(self) -> float:
        return self._drafting

    def set_costs(self, calibration: Calibration) -> None:
        self._table = _table_of(calibration.costs, self._most)
        self._begin_round()

    def _begin_round(self) -> None:
        self._seconds = self._table.near(self._context)
        self._level, self._drafting = 0, 0.0
        self._unused = min(1.0, self._without / _MANY)
        self._switch = self._seconds.switch * self._unused
        # The last tree and what was found for it: it is asked again where no level is added.
        self._ranked: tuple[TokenTree, tuple[list[int], list[float]]] | None = None

    def _each(self, together: Sequence[float]) -> list[float]:
        """`together` of the best 1, 2, ... `branch` children, of which there may be fewer."""
        return [*together, *[together[-1]] * (self.branch - len(together))]

    def offered(self, together: Sequence[float]) -> None:
        pairs = zip(self._offered, self._each(together), strict=True)
        # At first a mean of all: nothing would be a bad guess.
        self._offers += 1
        fade = min(_YIELD_FADE, 1 - 1 / self._offers)
        self._offered = [new + fade * (old - new) for old, new in pairs]

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        if expanded:
            ranks = zip(*steps_below(tree, log_probs, expanded), strict=True)
            means = (sum(map(math.exp, steps)) / len(expanded) for steps in ranks)
            # A small vocabulary may have fewer children than `branch`.
            added = self._each([min(1.0, hit) for hit in accumulate(means)])
            pairs = zip(self._yield[self._level], added, strict=True)
            self._yield[self._level] = [new + _YIELD_FADE * (old - new) for old, new in pairs]
            self._level += 1
        least = math.log(threshold) if (threshold := self._policy.threshold) else -math.inf
        return [value >= least for value in log_probs]

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        seconds = self._seconds
        if seconds.draft is None or not candidates or not self._most:
            return []
        hits = zip(self._yield[self._level], self._offered, strict=True)
        # In seconds, by how many children of a node are verified.
        each = [max(0.0, hit - other) * self._priced(seconds.drafted, hit) for hit, other in hits]
        probed = self._level == 0 and len(tree) == 1 and self._probing
        # Most often, on text that does not loop: not even if all of it were new.
        if max(each) <= seconds.level and not probed:
            return []
        # Lists, not tensors: there are few nodes here, most often the root alone.
        v, parents = [math.exp(value) for value in tree.nodes.log_probs], tree.nodes.parents
        order = sorted(candidates, key=lambda node: -v[node])[: self._most]
        # What a child adds is its share of what no child of that node claims yet.
        room = [*v]
        for node in range(1, len(tree)):
            room[parents[node]] -= v[node]
        share, worths = 0.0, []
        for node in order:
            share += max(0.0, room[node])
            worths.append([share * worth for worth in each])
        gains = [[worth - cost for worth in row] for row, cost in zip(worths, seconds.draft[1:], strict=False)]
        n = 0
        if max(map(max, gains)) > 0:
            n = self._best(tree)
            widths = [min(n + j, self._most) for j in range(1, 1 + len(each))]
            wider = [max(0.0, seconds.at_least[width] + self._switch - self._verifying(n)) for width in widths]
            gains = [[gain - more for gain, more in zip(row, wider, strict=True)] for row in gains]
        # Of equal gains the one of fewer nodes.
        gain, best = max((gain, -place) for place, row in enumerate(gains) for gain in row)
        if self._level == 0:
            self._forgone += max(0.0, gain)
        if not probed and (gain <= 0 or (self._level == 0 and self._forgone < self._feeding)):
            return []
        if self._level == 0:
            self._tried, self._forgone = gain <= 0, 0.0
        self._drafting += seconds.draft[1 - best]
        return sorted(order[: 1 - best])

    @property
    def _feeding(self) -> float:
        """Seconds of feeding what the drafter lacks besides the root.

        It is fed when levels would have gained as much: who never drafts never pays for it, and who drafts at last has
        paid no more than twice what would have been best (ski rental; Karlin et al. 1988). As many tokens are counted
        as the table is asked for, which is what is left of a text that outgrew a drafter's window.
        """
        draft = self._seconds.draft
        assert draft is not None, "asked where levels have a price"
        return max(0.0, draft[min(self._lag, len(draft) - 1)] - draft[1])

    @property
    def _probing(self) -> bool:
        """After `every` rounds without a draft, or after half as many where their number is a multiple of it.

        All requests of a batch do so in the same round, so that they share its forward.
        """
        every = _PROBE_EVERY << min(self._in_vain, _PROBE_DOUBLED)
        return self._idle >= every or (self._idle >= every // 2 and self._round % every == 0)

    def savings(self, tree: TokenTree, most: int) -> list[float]:
        worth = self._worth(tree)[1]
        worth = worth + worth[-1:] * (most + 1 - len(worth))
        least = self._verifying(0)
        return [gained - (self._verifying(n) - least) for n, gained in enumerate(worth[: self._most + 1][: most + 1])]

    def select_within(self, tree: TokenTree, width: int) -> list[int]:
        return [0, *sorted(self._worth(tree)[0][:width])]

    def select(self, tree: TokenTree) -> list[int]:
        return self.select_within(tree, self._best(tree))

    def _best(self, tree: TokenTree) -> int:
        """How many nodes to verify, of the nodes ranked by v."""
        savings = [gained - self._verifying(n) for n, gained in enumerate(self._worth(tree)[1])]
        return savings.index(max(savings))

    def _verifying(self, nodes: int) -> float:
        """Seconds of verifying so many, in this round."""
        return self._seconds.verify[nodes] + (self._switch if nodes else 0.0)

    def _worth(self, tree: TokenTree) -> tuple[list[int], list[float]]:
        """The nodes [n] ranked by v, and what the best 0..n of them are worth together [n + 1], in seconds."""
        if self._ranked is None or self._ranked[0] is not tree:
            ranking = tree.ranking()[: self._most]
            worth = accumulate(
                (math.exp(tree.nodes.log_probs[node]) * self._token(tree, node) for node in ranking), initial=0.0
            )
            self._ranked = tree, (ranking, [*worth])
        return self._ranked[1]

    def _token(self, tree: TokenTree, node: int) -> float:
        """Seconds that the token of `node` would take otherwise."""
        values = tree.nodes.log_probs
        step = math.exp(min(0.0, values[node] - values[tree.nodes.parents[node]]))
        return self._priced(self._seconds.tokens, step)

    def _priced(self, token: tuple[list[float], list[float]], step: float) -> float:
        """Seconds of a `token` by the probability of its `step`, in this round."""
        place = int(step * _GRID)
        among, behind = token[0][place], token[1][place]
        return among + self._unused * (behind - among)

    def saved(self, tree: TokenTree, path: Tensor, width: int) -> float:
        gained = sum(self._token(tree, node) for node in path.tolist()[1:])
        return gained - (self._verifying(width) - self._verifying(0))

    def observe(self, tree: TokenTree, path: Tensor) -> None:
        if self._level:
            self._in_vain = self._in_vain + 1 if self._tried else 0
        self._idle = 0 if self._level else self._idle + 1
        # Of the accepted nodes those that were drafted below are fed already, but for a drafter that reads its target.
        self._lag = max(1, len(path) - self._level + 1) if self._level else self._lag + len(path)
        self._round += 1
        self._without = 0 if len(tree) > 1 else self._without + 1
        # The accepted tokens and one of the target's own.
        self._context += len(path)
        self._begin_round()


def seconds_per_token(verify: Tensor, level: float = 0.0, switch: float = 0.0) -> Tensor:
    """Seconds per token [_GRID + 1] of decoding with chains whose every step is right with probability c = i / _GRID.

    `verify` [n + 1]: seconds of verifying 0..n nodes; `level`: of drafting one; `switch`: of having any. Each c takes
    its best length.
    """
    c = (torch.arange(_GRID + 1) / _GRID).clamp(max=0.999)[:, None]
    lengths = torch.arange(len(verify))
    expected = (1 - c ** (lengths + 1)) / (1 - c)
    return ((verify + level * lengths + switch * (lengths > 0)) / expected).min(1).values
