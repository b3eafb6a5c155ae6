"""What requests of a batch decide together: how wide their forward is, by costs of their number."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import BatchCosts, Curve
from dynatree.costs.step_rates import SampledRates
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.growth import Growth
from dynatree.policies import PolicySettings, cost_aware
from dynatree.tree import TokenTree
from tests import models

VERIFY = Curve(contexts=[16], tokens=[1, 2], seconds=[[2, 2.2]])
TREE = TokenTree.root(1).chain(range(3), [0.0] * 3)


class Priced:
    """A growth that would save `savings`, takes what there is room for, and notes its costs."""

    branch = depth = 1
    level = drafting = 0.0
    step = 10.0

    def __init__(self, savings: list[float]):
        self._savings = [float(saved) for saved in savings]
        self.costs: list[Calibration] = []

    def offered(self, together: Sequence[float]) -> None:
        raise NotImplementedError

    def children(self, tree: TokenTree, log_probs: Sequence[float], expanded: Sequence[int]) -> list[bool]:
        raise NotImplementedError

    def expand(self, tree: TokenTree, candidates: Sequence[int]) -> list[int]:
        raise NotImplementedError

    def select(self, tree: TokenTree) -> list[int]:
        return [*range(1 + self._savings.index(max(self._savings)))]

    def observe(self, tree: TokenTree, path: Tensor) -> None:
        pass

    def set_costs(self, calibration: Calibration) -> None:
        self.costs.append(calibration)

    def savings(self, tree: TokenTree, most: int) -> list[float]:
        return self._savings[: most + 1]

    def saved(self, tree: TokenTree, path: Tensor, width: int) -> float:
        return self._savings[len(path) - 1]

    def select_within(self, tree: TokenTree, width: int) -> list[int]:
        return [*range(width + 1)]


class Given:
    """A policy that starts the growths it was given, in order."""

    def __init__(self, *growths: Any):
        self._growths = [*growths]
        self.started: list[tuple[Calibration | None, int]] = []

    def start(self, calibration: Calibration | None, context: int) -> Growth:
        self.started.append((calibration, context))
        growth: Growth = self._growths.pop(0)
        return growth


def measured(looking: tuple[float, float] = (0, 0)) -> Calibration:
    """Of up to three requests."""
    costs, steps = models.calibration()
    batches = [BatchCosts(rows=rows, verify=VERIFY, draft=VERIFY) for rows in (2, 3)]
    return Calibration(costs.model_copy(update={"batches": batches, "looking": looking}), steps)


class Batch:
    """`rows` requests, each of which would save `saved` seconds by a node that is looked for."""

    def __init__(self, rows: int, saved: float, looking: tuple[float, float] = (2, 1)):
        self.growths = [Priced([0, saved]) for _ in range(rows)]
        self.requests = [models.request([1, 2], 8) for _ in range(rows)]
        self.planner = BatchPlanner(Given(*self.growths), measured(looking))
        self.planner.start(self.requests)

    def rounds(self, count: int) -> list[bool]:
        """Of each of so many rounds whether it looked."""
        looks = []
        for _ in range(count):
            looks.append(self.planner.looks(self.requests))
            if looks[-1]:
                self.looked(TokenTree.root(1))
        return looks

    def looked(self, at_rest: TokenTree) -> None:
        """A round that looked, of whose tree a node was accepted."""
        self.planner.looked(self.requests, [at_rest] * len(self.requests))
        paths = [torch.arange(2)] * len(self.requests)
        self.planner.observe(self.requests, [TREE] * len(self.requests), paths)

    def spells(self, count: int) -> list[int]:
        """The lengths of spells of rounds that look, and of those that do not, which are negative."""
        return [(1 if looked else -1) * len([*same]) for looked, same in groupby(self.rounds(count))]


@pytest.mark.parametrize(
    ("savings", "sizes"),
    [
        ([[0, 3, 5, -1], [0, -2, -6, -7]], [1, 1]),  # alone, the first would take two nodes, the second none
        ([[0, 3, 5, -1], [0, -2, -3, -7]], [2, 2]),
        ([[0, 1], [0, -2]], [0, 0]),
        ([[0, 1, 2, 3, 9], [0, 1, 2, 3, 9]], [3, 3]),  # neither has a fourth node
        ([[0, 3]], [1]),  # alone it decides for itself
    ],
)
def test_how_wide_a_forward_is(savings: list[list[float]], sizes: list[int]) -> None:
    """Guards against one request's large tree, for which all the others pay in padding."""
    planner = BatchPlanner(Given(*map(Priced, savings)), measured())
    requests = [models.request([1, 2], 8) for _ in savings]
    planner.start(requests)
    trees = planner.select(requests, [TREE] * len(savings))
    assert [len(tree) - 1 for tree in trees] == sizes


def test_a_growth_begins_with_the_rates_of_its_text() -> None:
    """Guards levels that are expected to yield what they do in greedy text, where text is drawn or processed."""
    costs, steps = measured()
    drawn = SampledRates(temperature=1.0, ranks=[(0.0, 1.0)], rates=[0.2], lookup=[0.1])
    known = steps.model_copy(update={"rates": [0.6], "rates_processed": [0.4], "sampled": [drawn]})
    policy = Given(Priced([0.0]), Priced([0.0]), Priced([0.0]))
    kinds: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.2}, {"do_sample": True, "temperature": 1.0}]
    BatchPlanner(policy, Calibration(costs, known)).start([models.request([1, 2], 8, **kind) for kind in kinds])
    given = [calibration.step_rates.rates for calibration, _ in policy.started if calibration]
    assert given == [[0.6], [0.4], [0.2]]


def test_a_growth_without_costs_decides_for_itself() -> None:
    """Guards against costs that decide for a policy which knows none."""
    requests = [models.request([1, 2], 8) for _ in range(2)]
    planner = BatchPlanner(Given(*[PolicySettings()] * 2), None)
    planner.start(requests)
    assert [len(tree) for tree in planner.select(requests, [TREE, TREE])] == [4, 4]


def test_a_batch_looks_for_nodes_as_long_as_they_save_what_it_takes() -> None:
    """Guards batches that are slower than without drafting, by what each request is looked at in vain."""
    assert all(Batch(2, 1.6).rounds(200))
    # Of 20 seconds it loses 2 by looking. As is to be expected of such text, it rests from the first round on.
    rests = Batch(2, 0.5)
    spells = rests.spells(1000)
    for rest, looked in zip(spells[::2], spells[1::2], strict=False):
        assert -210 < rest < -190 and 10 <= looked <= 12
    # One round and 0.5 % of the time, and the last round.
    assert 0 < 2 * sum(looked for looked in spells if looked > 0) <= 20 + 0.005 * 20 * 1000 + 2
    # Text changes: once it pays, it goes on; what was gained may be lost again.
    for growth in rests.growths:
        growth._savings = [0, 9]
    assert any(rests.rounds(210)) and all(rests.rounds(40))
    for growth in rests.growths:
        growth._savings = [0, 0]
    looked, rest, *_ = rests.spells(400)
    # What the last look lost beyond the account, up to 0.15 of a round, is waited for as well: 30 rounds.
    assert 60 < looked < 70 and -230 < rest < -190


def test_costs_of_drawn_text_are_the_same_object_each_time() -> None:
    """Guards tables that are made anew for each request, and what drawn requests pay once others have ended."""
    costs, steps = measured()
    known = Calibration(costs.model_copy(update={"drawing": (0.5, 0.0)}), steps)
    growths = [Priced([0]) for _ in range(5)]
    policy = Given(*growths)
    planner = BatchPlanner(policy, known)
    for count in (3, 2):
        requests = [models.request([1, 2], 8, do_sample=True) for _ in range(count)]
        planner.start(requests)
        planner.retain(requests[:2])
    (first, _), *_, (last, _) = policy.started
    assert first is not None and last is not None and first.costs.beside == last.costs.beside == costs.beside + 0.5
    assert growths[0].costs[0].costs is last.costs
    planner.start([])


def test_drawn_text_rests_where_its_own_price_is_not_saved() -> None:
    """Guards drawn text, in which looking takes more, by the price of text that is not drawn."""
    costs, steps = measured((0.1, 0.1))
    known = Calibration(costs.model_copy(update={"drawing": (0.0, 9.0)}), steps)
    looks = []
    for options in ({}, {"do_sample": True}):
        request = models.request([1, 2], 8, **options)
        planner = BatchPlanner(Given(Priced([0, 0.5])), known)
        planner.start([request])
        looks.append(planner.looks([request]))
    assert looks == [True, False]


def test_a_request_alone_rests_but_nobody_where_it_is_not_known_what_looking_takes() -> None:
    """Guards text that is slower for what is looked for in vain, and costs that do not say what that takes."""
    assert all(Batch(1, 0.0, (0, 0)).rounds(100)) and all(Batch(3, 0.0, (0, 0)).rounds(100))
    rest, looked, again, *_ = Batch(1, 0.5).spells(600)
    assert -230 < again <= rest < -190 and 6 <= looked <= 8 and all(Batch(1, 2.1).rounds(100))
    # What is left of a batch begins anew.
    batch = Batch(3, 1.2)
    assert not any(batch.rounds(150))
    for _ in range(2):
        del batch.requests[0]
        batch.planner.retain(batch.requests)
        assert not any(batch.rounds(190)) and batch.rounds(20)[-1]


def test_the_default_policy_rests_by_what_nodes_save() -> None:
    """Guards a batch that rests whatever is found, by savings that are those of no other forward."""
    policy = cost_aware.Policy(depth=8, branch=3, threshold=None, budget=8)
    root = TokenTree.root(1)
    sure = root.chain(range(2), [math.log(0.9)] * 2)
    for found, looks in ((sure, True), (root, False)):
        requests = [models.request([1, 2], 8) for _ in range(2)]
        costs, steps = models.calibration()
        batches = [BatchCosts(rows=2, verify=costs.verify, draft=costs.draft)]
        known = Calibration(costs.model_copy(update={"batches": batches, "looking": (0.1, 0.1)}), steps)
        planner = BatchPlanner(policy, known)
        planner.start(requests)
        # By its rates, 0.6 for the first child, looking is worth 0.2 of a step, which it takes.
        looked = 0
        while looked < 50 and planner.looks(requests):
            planner.looked(requests, [root] * 2)
            planner.observe(requests, [found] * 2, [torch.arange(len(found))] * 2)
            looked += 1
        assert looked == 50 if looks else 4 <= looked <= 6


def test_a_round_that_failed_is_nobody_s() -> None:
    """Guards requests that rest from what a batch had looked for whose forward failed."""
    rests, batch = Batch(1, 0.0), Batch(2, 0.5)
    assert not any(rests.rounds(10))
    batch.planner._growths.update(rests.planner._growths)
    batch.planner._looking.update(rests.planner._looking)
    batch.planner.looked(batch.requests, [TREE] * 2)
    assert not batch.planner.looks(rests.requests)
    batch.planner.observe(rests.requests, [TREE], [torch.arange(1)])
    assert not batch.planner.looks(rests.requests)


def test_levels_are_part_of_what_a_rest_spares() -> None:
    """Guards batches that draft in every round what their levels take again."""
    batch = Batch(2, 2.0)
    for growth in batch.growths:
        growth.drafting = 0.4
    assert all(batch.rounds(100))
    for growth in batch.growths:
        growth.drafting = 1.2
    assert not all(batch.rounds(200))


@pytest.mark.parametrize(("table", "begins"), [(True, True), (False, False)])
def test_what_is_to_be_expected_of_a_model_takes_a_level(table: bool, begins: bool) -> None:
    """Guards batches that begin with drafts which other text says will not pay."""
    requests, growths = [models.request([1, 2], 8) for _ in range(2)], [Priced([0, 2.0]) for _ in range(2)]
    for growth in growths:
        growth.level = 0.6
    costs, steps = measured((2, 1))
    steps = steps.model_copy(update={"successors": [(0.0, 1.0)] if table else []})
    planner = BatchPlanner(Given(*growths), Calibration(costs, steps))
    planner.start(requests)
    assert planner.looks(requests) == begins


def test_what_lookup_found_is_not_what_looking_saves() -> None:
    """Guards loops, in which chains save much, and all that is looked for beside them nothing."""
    batch, looked = Batch(2, 9.0), 0
    while looked < 50 and batch.planner.looks(batch.requests):
        batch.looked(TREE)
        looked += 1
    assert 6 <= looked <= 8 and not any(batch.rounds(32))


def test_what_counts_is_what_was_accepted() -> None:
    """Guards text on which a drafter is right less often than it says."""
    batch, looked = Batch(2, 9.0), 0
    while looked < 50 and batch.planner.looks(batch.requests):
        batch.planner.looked(batch.requests, [TokenTree.root(1)] * 2)
        batch.planner.observe(batch.requests, [TREE] * 2, [torch.arange(1)] * 2)
        looked += 1
    assert 6 <= looked <= 8 and not any(batch.rounds(32))


def test_costs_are_those_of_as_many_requests_as_there_are() -> None:
    """Guards against requests that go on paying a share of a batch when they are alone, and against a wrong context."""
    growths, known = [Priced([0.0]) for _ in range(3)], measured()
    policy = Given(*growths)
    planner, requests = BatchPlanner(policy, known), [models.request([1] * n, 8) for n in (2, 5, 3)]
    planner.start(requests)
    assert policy.started == [(known.shared(3), context) for context in (1, 4, 2)]
    planner.retain(requests[1:])
    planner.retain(requests[2:])
    assert [growth.costs for growth in growths] == [[], [known.shared(2)], [known.shared(2), known.shared(1)]]


def test_a_batch_larger_than_any_measured_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Guards against trees by costs of another batch without a word, and against a word for every round."""
    for count, counted in ((3, 3), (2, 2), (1, 1), (5, 3)):
        policy = Given(*[Priced([0.0])] * count)
        BatchPlanner(policy, measured()).start([models.request([1, 2], 8) for _ in range(count)])
        assert [calibration for calibration, _ in policy.started] == [measured().shared(counted)] * count
    assert caplog.messages == ["cost table: no batch of 5 was measured, one of 3 stands for it"]
