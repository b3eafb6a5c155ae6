"""The best static tree against every tree there is, and the tree that is really grown."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynatree.decoding.speculative import Decoder
from dynatree.policies.optimal import StaticTree, best_trees, fastest
from tests import models
from tests.conftest import Build, Drafts

RATES = st.lists(st.floats(0, 0.5), min_size=1, max_size=3)


def shapes(nodes: int, depth: int, branch: int) -> list[tuple]:
    """Every ordered tree with so many nodes, the root among them, as nested tuples of children."""
    if nodes == 1:
        return [()]
    if depth == 0:
        return []
    found = []
    for count in range(1, min(branch, nodes - 1) + 1):
        for sizes in product(range(1, nodes), repeat=count):
            if sum(sizes) == nodes - 1:
                found += product(*(shapes(size, depth - 1, branch) for size in sizes))
    return found


def worth(shape: tuple, rates: list[float]) -> float:
    return 1 + sum(rate * worth(child, rates) for rate, child in zip(rates, shape, strict=False))


@settings(max_examples=30)
@given(RATES, st.integers(0, 3))
def test_no_tree_expects_more(rates: list[float], depth: int) -> None:
    """Guards the recurrence, against all trees of up to six nodes."""
    found = {len(tree.children): tree for tree in best_trees(rates, depth, 5)[depth]}
    for nodes in range(1, 7):
        every = shapes(nodes, depth, len(rates))
        assert (nodes in found) is bool(every)
        if every:
            best = max(worth(shape, rates) for shape in every)
            assert found[nodes].expected == pytest.approx(best)
            assert worth(nested(found[nodes], 0), rates) == pytest.approx(best)


def nested(tree: StaticTree, node: int) -> tuple:
    return tuple(nested(tree, child) for child in tree.children[node])


def test_costs_decide_the_size() -> None:
    """Guards against the largest tree whatever it costs, and against no tree where nodes are free."""
    rates, draft = (0.6, 0.2), (0.0,) + (0.05,) * 20
    free = fastest(rates, 4, 20, tuple(1.0 for _ in range(21)), draft)
    dear = fastest(rates, 4, 20, tuple(1.0 + n for n in range(21)), draft)
    assert len(free.children) == 21 and len(dear.children) == 1


def test_the_tree_that_is_grown_is_the_static_one(target: Build, drafter: Drafts) -> None:
    """Guards against ranks that are mixed up while growing: every full round verifies the same shape."""
    knobs = {"policy": "optimal", "drafting": "model", "depth": 3, "branch": 3, "budget": 9}
    trace = Decoder(target(), drafter("related"), models.calibration(0.001, 0.001), **knobs).decode(
        [3, 1, 4], models.wanted(40)
    )
    shapes_seen = {tuple(round.tree["parents"]) for round in trace.rounds if round.depth == 3}
    assert len(shapes_seen) == 1 and len(next(iter(shapes_seen))) == 10


@pytest.mark.parametrize("drafting", ["hybrid", "lookup"])
def test_lookup_is_refused(drafting: str) -> None:
    """Guards against an IndexError: lookup's chain may be longer than the static tree is deep."""
    knobs = {"policy": "optimal", "drafting": drafting, "depth": 3, "branch": 3, "budget": 9}
    with pytest.raises(ValueError, match=f"drafting: {drafting}; .* write drafting: model"):
        Decoder.check(knobs)
