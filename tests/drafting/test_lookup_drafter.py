"""Lookup against a naive search for the longest earlier match, and what it learns of its own hits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynatree.costs.step_rates import StepRates
from dynatree.drafting import lookup
from dynatree.drafting.lookup import BUCKETS, PRIOR, Lookup, bucket
from dynatree.errors import UserError
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.request import Request
from dynatree.policies import chain
from dynatree.tree import TokenTree
from tests import models

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def proposed(drafter: lookup.Drafter, *requests: Request) -> list[TokenTree]:
    """One round of chains of one token."""
    planner = BatchPlanner(chain.Policy(draft_tokens=1), None)
    planner.start(requests)
    drafter.start(requests)
    return drafter.propose(requests, planner)


def naive(text: list[int]) -> tuple[int, int]:
    """Length and end of the longest earlier match of the text's end; the latest wins."""
    best, source = 0, 0
    for end in range(1, len(text)):
        length = 0
        while length < end and text[end - 1 - length] == text[-1 - length]:
            length += 1
        if length and length >= best:
            best, source = length, end
    return best, source


@given(TEXTS, st.integers(0, 12))
def test_proposes_what_followed_the_longest_match(text: list[int], limit: int) -> None:
    """Guards against a match with the text's own end, and against proposals read beyond the text."""
    tokens, steps = Lookup(candidates=len(text)).propose(text, limit)
    length, source = naive(text)
    extended = list(text)
    for _ in range(limit if length else 0):
        extended.append(extended[source + len(extended) - len(text)])
    assert tokens == extended[len(text) :]
    assert len(steps) == len(tokens) and all(step <= 0 for step in steps)


def test_what_is_drafted_below_a_chain_is_never_above_it() -> None:
    """Guards against a sure child by a hair above its parent: a cut between the two would leave it without one."""
    planner, drafter = BatchPlanner(chain.Policy(draft_tokens=12), None), lookup.Drafter()
    asked = models.request([1, 2, 3, 1, 2], 20)
    planner.start([asked])
    drafter.start([asked])
    (tree,) = drafter.propose([asked], planner)
    assert len(tree) == 13
    # As what is drafted below a node: its own value and that of a step.
    for node, value in enumerate(tree.nodes.log_probs):
        grown = tree.graft([node], [50], [value + 0.0])
        assert all(grown.nodes.parents[one] in top for top in map(grown.top, range(14)) for one in top[1:])


@given(TEXTS, st.lists(st.integers(0, 3), max_size=20))
def test_an_index_grown_step_by_step_equals_one_made_at_once(text: list[int], more: list[int]) -> None:
    """Guards against n-grams missed or entered twice where rounds commit several tokens."""
    stepwise = Lookup()
    for size in range(1, len(text), 3):
        stepwise.propose(text[:size], 0)
    assert stepwise.propose([*text, *more], 9)[0] == Lookup().propose([*text, *more], 9)[0]


def test_a_cycle_is_continued_around() -> None:
    """Guards against a chain that ends where the text does."""
    assert Lookup().propose([7, 1, 2, 3, 1, 2, 3, 1], 8)[0] == [2, 3, 1, 2, 3, 1, 2, 3]


def test_confidence_follows_hits_and_misses() -> None:
    """Guards against a drafter that goes on trusting a match that fails."""
    missed, hit = Lookup(), Lookup()
    text = [1, 2, 9, 1, 2]
    for lookup_, following in ((missed, 5), (hit, 9)):
        (before,) = lookup_.propose(text, 1)[1]
        after = [*text, following, 3, 1, 2]
        (now,) = lookup_.propose(after, 1)[1]
        assert (now > before) is (lookup_ is hit)
    assert math.isclose(math.exp(Lookup().propose(text, 1)[1][0]), PRIOR[bucket(2)])


def test_buckets_hold_every_length() -> None:
    """Guards against a match that is longer or shorter than any bucket."""
    assert [bucket(length) for length in BUCKETS] == list(range(len(BUCKETS))) and bucket(10**6) == len(BUCKETS) - 1
    assert len(PRIOR) == len(BUCKETS) and list(PRIOR) == sorted(PRIOR)


def test_rates_are_counted_up_to_each_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against counting what no verification would show: tokens behind a rejected one."""
    # Behind the prompt's last token, 1: match (1, 2) of one token proposes 2, 1, ...; all right until 9.
    monkeypatch.setattr(lookup, "_WEIGHT", 10)
    rates = lookup.rates([([1, 2, 1, 2], [1, 2, 1, 9, 5])])
    assert rates[bucket(3)] > PRIOR[bucket(3)]
    # (1, 2, 1, 2, 1) has five tokens when 2 is proposed and 9 comes.
    assert rates[bucket(5)] < PRIOR[bucket(5)] or rates[bucket(6)] < PRIOR[bucket(6)]
    assert rates[bucket(41)] == PRIOR[bucket(41)]


@pytest.mark.parametrize("wrong", ["lookup", "lookup_processed"])
def test_rates_of_other_buckets_are_refused(wrong: str) -> None:
    """Guards against a calibration whose rates belong to other lengths, or an IndexError behind a long match."""
    rates = {"lookup": list(PRIOR), wrong: [0.1, 0.2]}
    with pytest.raises(UserError, match="2 rates of lookup, 12 expected"):
        lookup.Drafter(rates=StepRates(ranks=[(0.0, 1.0)], rates=[0.0], **rates))


def test_processed_text_starts_with_rates_of_its_own() -> None:
    """Guards against a request without processors that begins with what was measured under them, or the reverse."""
    plain, processed = [0.5] * len(PRIOR), [0.25] * len(PRIOR)
    measured = StepRates(ranks=[(0.0, 1.0)], rates=[0.0], lookup=plain, lookup_processed=processed)
    without = measured.model_copy(update={"lookup_processed": []})
    for calibration, processors, expected in (
        (measured, {}, 0.5),
        (measured, {"repetition_penalty": 1.2}, 0.25),
        (without, {"no_repeat_ngram_size": 3}, 0.5),
    ):
        (tree,) = proposed(lookup.Drafter(rates=calibration), models.request([1, 2, 3, 1, 2], 2, **processors))
        assert tree.log_probs[1:].exp().tolist() == pytest.approx([expected])
