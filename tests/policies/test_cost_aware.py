"""The cost-aware policy: it verifies and drafts what pays by its table, and nothing else."""

import logging
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import Curve
from dynatree.decoding.speculative import Decoder
from dynatree.policies.cost_aware import Policy, seconds_per_token
from dynatree.tree import ROOT, TokenTree
from tests import models
from tests.conftest import Build, Drafts
from tests.test_tree import trees

LIMITS: dict[str, Any] = {"depth": 12, "branch": 3, "threshold": None, "budget": 16}
PROMPT = [3, 1, 4, 1, 5]


def started(calibration: Calibration, **knobs: Any) -> Any:
    """The growth of a request in its first round."""
    return Policy(**{**LIMITS, **knobs}).start(calibration, 20)


def chain(*probabilities: float) -> TokenTree:
    return TokenTree.root(0).chain(range(len(probabilities)), [math.log(p) for p in probabilities])


def test_free_nodes_are_all_verified_and_dear_ones_never() -> None:
    """Guards against a policy that ignores its table."""
    tree = chain(0.5, 0.5, 0.5)
    assert len(started(models.calibration(node=1e-6)).select(tree)) == 4
    assert len(started(models.calibration(node=2)).select(tree)) == 1


def verifying(tokens: list[int], seconds: list[float]) -> Calibration:
    """The machine of `models.calibration`, but for what verification costs."""
    found = models.calibration()
    curve = type(found.costs.verify)(contexts=[16], tokens=tokens, seconds=[seconds])
    return Calibration(found.costs.model_copy(update={"verify": curve}), found.step_rates)


def test_a_staircase_is_looked_at_whole() -> None:
    """Guards against stopping at the first node that does not pay: here 1 costs as much as 4."""
    policy = started(verifying([1, 2, 5, 6], [1, 2.2, 2.2, 9]))
    assert policy.select(chain(0.95, 0.95, 0.95, 0.95)) == [0, 1, 2, 3, 4]
    assert policy.select(chain(0.95)) == [0]


def costing(**costs: float) -> Calibration:
    """The machine of `models.calibration`, with such further costs."""
    found = models.calibration(node=0.1)
    return found._replace(costs=found.costs.model_copy(update=costs))


def test_nodes_are_dear_behind_many_rounds_without() -> None:
    """Guards a chain here and there, for each of which other weights come into the processor's caches."""
    root, likely = TokenTree.root(0), chain(0.5)
    growth, free = started(costing(switch=0.8)), started(costing())
    for _ in range(8):
        assert growth.select(likely) == [0, 1]
        growth.observe(root, ROOT)
    for _ in range(24):
        growth.observe(root, ROOT)
    assert growth.select(likely) == [0]
    verify = torch.tensor([1.0 + 0.1 * n for n in range(65)])
    # Who waits for such a token has to pay as much before it comes in a chain.
    place = int(math.exp(likely.nodes.log_probs[1]) * 200)
    dearer = float((seconds_per_token(verify, switch=0.8) - seconds_per_token(verify))[place])
    assert dearer > 0.1
    for nodes, path in ((0, ROOT), (1, torch.arange(2))):
        for one, other, hits in (
            (growth.savings(likely, 1)[nodes], free.savings(likely, 1)[nodes], 0.5),
            (growth.saved(likely, path, nodes), free.saved(likely, path, nodes), 1.0),
        ):
            assert one == pytest.approx(other + nodes * (hits * dearer - 0.8))
    growth.observe(likely, ROOT)
    assert growth.select(likely) == [0, 1]


@pytest.mark.parametrize("switch", [0.0, 1.5, 4.0])
def test_a_sure_chain_pays_for_a_dear_switch(switch: float) -> None:
    """Guards loops that are never begun: a switch was paid for with tokens at the price of chains without one."""
    growth = started(costing(switch=switch), budget=64, depth=64)
    for _ in range(32):
        growth.observe(TokenTree.root(0), ROOT)
    assert len(growth.select(chain(*[0.98] * 40))) > 10
    # And a short one does not.
    assert len(growth.select(chain(0.98))) == (1 if switch > 1 else 2)


def test_a_token_is_worth_what_its_round_takes_besides_a_forward() -> None:
    """Guards trees that are too small where much is done between forwards."""
    unlikely = chain(0.08)
    assert started(costing()).select(unlikely) == [0]
    assert started(costing(beside=0.5)).select(unlikely) == [0, 1]


def test_what_was_saved_is_what_was_accepted_less_the_nodes() -> None:
    """Guards savings that are stated, and never seen."""
    growth, tree = started(costing()), chain(0.1, 0.1, 0.1)
    gained = [growth.saved(tree, torch.arange(1 + accepted), 3) for accepted in range(4)]
    # Three nodes take 0.3 s, and each token would have taken a step of 1 s.
    assert gained == pytest.approx([-0.3, 0.7, 1.7, 2.7], abs=0.05)


@given(trees(), st.floats(0, 0.5), st.integers(0, 6))
def test_selection_is_closed_under_parents_and_within_the_budget(tree: TokenTree, node: float, budget: int) -> None:
    """Guards against nodes whose parents are not verified."""
    selected = started(models.calibration(node=node), budget=budget).select(tree)
    assert selected == sorted(set(selected)) and selected[0] == 0 and len(selected) <= budget + 1
    assert {int(tree.parents[n]) for n in selected[1:]} <= set(selected)


@pytest.mark.parametrize(("level", "drafted"), [(0.2, True), (0.3, False)])
def test_a_level_is_weighed_by_what_its_tokens_would_cost_otherwise(level: float, drafted: bool) -> None:
    """Guards against drafts by the price of a chain that nobody has to draft, where guesses are right 0.4 of the time.

    One more node takes 0.15 of a step. Free chains at 0.4 give a token in 0.82 of a step, which would not pay for 0.35.
    """
    machine = models.calibration(0.15, level, rates=[0.4])
    growth = Policy(depth=4, branch=1, threshold=None, budget=8).start(machine, 16)
    assert bool(growth.expand(TokenTree.root(1), [0])) == drafted
    verify = torch.tensor([1.0, 1.15, 1.3])
    assert seconds_per_token(verify)[80] == pytest.approx(1.15 / 1.4)
    assert seconds_per_token(verify, level)[80] == pytest.approx(min(1.0, (1.15 + level) / 1.4))


def test_a_token_of_a_loop_is_cheap_later_and_one_of_new_text_costs_a_step() -> None:
    """Guards the worth of a node: falling in its step probability, from one step to a verified chain's."""
    seconds = seconds_per_token(torch.tensor([1.0 + 0.01 * n for n in range(65)]))
    assert seconds[0] == 1 and seconds[-1] < 0.05
    assert (seconds.diff() <= 0).all()


def test_drafting_stops_where_it_does_not_pay_and_is_tried_again() -> None:
    """Guards against a drafter that is never asked again, and against one that is asked although it never pays."""
    dear, cheap = started(models.calibration(level=3)), started(models.calibration(level=0.01))
    tree = TokenTree.root(0)
    assert cheap.expand(tree, [0]) == [0]
    asked = []
    for _ in range(1800):
        asked.append(len(dear.expand(tree, [0])))
        if asked[-1]:
            dear.children(tree, [-9.0] * 3, [0])
        dear.observe(tree, ROOT)
    # More and more seldom, but always again.
    assert [place for place, one in enumerate(asked) if one] == [256, 769, 1794]


@pytest.mark.parametrize(("rates", "drafted"), [([0.5, 0.2], True), ([0.1, 0.05], False)])
def test_the_first_level_goes_by_what_was_measured(rates: list[float], drafted: bool) -> None:
    """Guards text that does not loop, where five levels on trust cost more than the tree brings later."""
    growth = started(models.calibration(level=0.2, rates=rates))
    assert bool(growth.expand(TokenTree.root(0), [0])) == drafted


def test_what_has_to_be_fed_is_fed_when_levels_would_have_gained_as_much() -> None:
    """Guards rounds that feed the drafter all that came since the last level for one more, and those who never do."""
    found, root = models.calibration(level=0.3, rates=[0.5]), TokenTree.root(0)
    # Each token that is fed besides the root takes 0.01; a level gains 0.5 of a token less its price, 0.126.
    draft = Curve(contexts=[16], tokens=[1, 128], seconds=[[0.3, 1.57]])
    growth = started(Calibration(found.costs.model_copy(update={"draft": draft}), found.step_rates), budget=2)

    def waited() -> int:
        rounds = 0
        while not growth.expand(root, [0]):
            growth.observe(root, ROOT)
            rounds += 1
        growth.children(root, [math.log(0.5)], [0])
        growth.observe(root, ROOT)
        return rounds

    assert waited() == 1, "a prompt of 20 tokens takes 0.2"
    assert waited() == 0, "after a level there is nothing to feed"
    for _ in range(40):
        growth.observe(root, ROOT)
    assert waited() == 3, "of 44 tokens that takes 0.43"


def test_a_level_that_yields_nothing_is_dropped() -> None:
    """Guards the moving yield: proposals of no probability must end the drafting."""
    policy, rounds = started(models.calibration(level=0.1)), 0
    while policy.expand(TokenTree.root(0), [0]) and rounds < 60:
        policy.children(TokenTree.root(0), [math.log(0.001), math.log(0.0005)], [0])
        policy._begin_round()
        rounds += 1
    assert 2 < rounds < 60


@pytest.mark.parametrize(("two", "four", "drafted"), [(1.6, 1.1, True), (1.6, 1.6, False), (1.1, 1.1, True)])
def test_drafting_counts_on_every_child_and_on_the_cheaper_of_wider_forwards(
    two: float, four: float, drafted: bool
) -> None:
    """Guards against one child as the measure, where a forward over two tokens takes longer than one over four."""
    policy = started(verifying([1, 2, 4, 128], [1, two, four, 9]))
    for _ in range(60):
        policy._begin_round()
        chosen = policy.expand(TokenTree.root(0), [0])
        if chosen:
            policy.children(TokenTree.root(0), [math.log(p) for p in (0.25, 0.1, 0.05)], [0])
    assert bool(chosen) == drafted


def test_a_vocabulary_smaller_than_the_branch_is_learnt_from() -> None:
    """Guards the yields of children that there cannot be."""
    policy = started(models.calibration(level=0.1))
    assert policy.expand(TokenTree.root(0), [0])
    policy.children(TokenTree.root(0), [math.log(0.6), math.log(0.4)], [0])


def test_dear_drafting_and_verification_leave_plain_steps(target: Build, drafter: Drafts) -> None:
    """Guards the promise to be no slower than autoregressive decoding: no nodes, and draft calls in a bounded share."""
    decoder = Decoder(
        target(), drafter("wrong"), models.calibration(1.0, 2.0), policy="cost_aware", drafting="model", **LIMITS
    )
    trace = decoder.decode(PROMPT, models.wanted(60))
    assert not any(round.drafted for round in trace.rounds)
    assert trace.draft_forwards == 0


def test_a_good_cheap_drafter_is_used_deeply(target: Build, drafter: Drafts) -> None:
    """Guards against a policy that is exact because it never speculates."""
    decoder = Decoder(
        target(), drafter("same"), models.calibration(0.001, 0.001), policy="cost_aware", drafting="model", **LIMITS
    )
    trace = decoder.decode(PROMPT, models.wanted(60))
    assert trace.target_forwards < 30


def test_without_a_table_threshold_takes_over_and_says_so(
    target: Build, drafter: Drafts, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a silent change of method."""
    knobs = {**LIMITS, "drafting": "model"}
    fallen = Decoder(target(), drafter("related"), None, policy="cost_aware", **knobs)
    with caplog.at_level(logging.WARNING):
        found = fallen.decode(PROMPT, models.wanted(20)).rounds
    assert "threshold" in caplog.text
    threshold = Decoder(target(), drafter("related"), None, policy="threshold", **{**knobs, "depth": 8})
    assert found == threshold.decode(PROMPT, models.wanted(20)).rounds


def test_requests_of_the_same_costs_share_what_follows_from_them() -> None:
    """Guards batches that work out the same seconds for each request, and requests that go by those of other costs."""
    one, other = models.calibration(), models.calibration(node=0.5)
    policy, fewer = (Policy(depth=4, branch=2, threshold=None, budget=budget) for budget in (8, 4))
    growths = [policy.start(one, 20), policy.start(one, 70), fewer.start(one, 20), policy.start(other, 20)]
    tables = [growth._table for growth in growths]
    assert tables[0] is tables[1] and len({id(table) for table in tables}) == 3
    assert [len(table.near(20).verify) for table in tables] == [9, 9, 5, 9]
    assert tables[3].near(20).verify[1] > tables[0].near(20).verify[1]
