"""Which children each policy keeps, and which knobs it refuses."""

import math
from typing import Any

import pytest
import torch

from dynatree import plugins
from dynatree.tree import TokenTree

THRESHOLD = {"depth": 3, "branch": 2, "threshold": 0.1, "budget": 4}
FIXED = {"depth": 3, "branch": 2, "budget": 4}


def policy(name: str, **knobs: Any) -> Any:
    return plugins.load("policies", name).Policy(**knobs)


@pytest.mark.parametrize(
    ("name", "knobs", "complaint"),
    [
        ("threshold", {**THRESHOLD, "branch": 0}, "branch"),
        ("threshold", {**THRESHOLD, "threshold": 2}, "threshold"),
        ("threshold", {**THRESHOLD, "threshold": -0.1}, "threshold"),
        ("threshold", {**THRESHOLD, "depth": -1}, "depth"),
        ("threshold", {**THRESHOLD, "budget": -1}, "budget"),
        ("threshold", {**THRESHOLD, "threshold": None, "budget": None}, "2\\^3"),
        ("threshold", {**THRESHOLD, "threshold": 0, "budget": None}, "2\\^3"),
        ("threshold", {**THRESHOLD, "temperature": 1}, "temperature"),
        ("threshold", {"depth": 3}, "branch"),
        ("fixed", {**FIXED, "branch": 0}, "branch"),
        ("fixed", {**FIXED, "tau": 0.1}, "tau"),
        ("fixed", {"depth": 64, "branch": 64, "budget": None}, "64\\^64"),
        ("chain", {"draft_tokens": -1}, "draft_tokens"),
        ("confidence", {"depth": 3, "base_depth": 4}, "base_depth 4 is above depth 3"),
        ("confidence", {"branch": 2}, "branch"),
        ("chain", {"draft_tokens": 3, "branch": 2}, "branch"),
    ],
)
def test_knobs_that_make_no_sense_are_refused_by_name(name: str, knobs: dict[str, Any], complaint: str) -> None:
    """Guards against typing errors that silently run something else, and against trees without bound."""
    with pytest.raises(ValueError, match=complaint):
        policy(name, **knobs)


def tree_of(log_probs: list[float]) -> TokenTree:
    count = len(log_probs)
    return TokenTree.root(0).extend([0] * count, range(count), log_probs)


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_threshold_keeps_children_of_exactly_tau() -> None:
    """Guards against > where the definition has >=, and against thresholds applied to logarithms."""
    chosen = policy("threshold", **{**THRESHOLD, "threshold": 0.5})
    assert chosen.children(tree_of([]), logs(1.0, 0.5, 0.49), [0]) == [True, True, False]


@pytest.mark.parametrize("threshold", [None, 0])
def test_no_threshold_keeps_impossible_children_too(threshold: float | None) -> None:
    """Guards against log(0)."""
    chosen = policy("threshold", **{**THRESHOLD, "threshold": threshold})
    assert chosen.children(tree_of([]), [-math.inf], [0]) == [True]


def test_threshold_expands_and_selects_only_the_best_nodes() -> None:
    """Guards against expanding nodes that can no longer be verified."""
    tree = tree_of([-3.0, -1.0, -2.0])
    chosen = policy("threshold", **{**THRESHOLD, "budget": 2})
    assert chosen.expand(tree, [1, 2, 3]) == [2, 3]
    assert chosen.select(tree) == [0, 2, 3]


def test_fixed_stops_at_its_budget_breadth_first() -> None:
    """Guards against a budget that counts the root."""
    chosen = policy("fixed", **{**FIXED, "budget": 3})
    assert chosen.children(tree_of([-1.0]), [-9.0, -1.0, -1.0], [0]) == [True, True, False]
    assert chosen.expand(tree_of([-1.0, -1.0]), [1, 2]) == [1, 2]
    assert chosen.expand(tree_of([-1.0, -1.0, -1.0]), [2, 3]) == []


def test_chain_is_one_child_a_level() -> None:
    """Guards against a chain that branches."""
    chosen = policy("chain", draft_tokens=5)
    assert (chosen.branch, chosen.depth) == (1, 5)
    assert chosen.select(tree_of([-1.0])) == [0, 1]


@pytest.mark.parametrize(("threshold", "looked_up"), [(None, True), (0.4, True), (0.5, True), (0.6, False)])
def test_a_chain_is_lookups_or_the_models(threshold: float | None, looked_up: bool) -> None:
    """Guards against a chain of two branches: lookup's as it is if its first token is likely enough, or the model's."""
    chosen = policy("chain", draft_tokens=3, threshold=threshold)
    assert chosen.children(tree_of([]), logs(0.5, 0.1), []) == [looked_up, looked_up]
    chain = TokenTree.root(0).chain(range(2), logs(0.5, 0.2))
    tree = chain if looked_up else TokenTree.root(0)
    assert chosen.expand(tree, [0]) == ([] if looked_up else [0])
    # Of the model's own tokens every one is kept, and the chain goes on from it.
    assert chosen.children(tree_of([]), logs(0.01), [0]) == [True]
    assert chosen.expand(tree_of([-1.0]), [1]) == [1]


def test_confidence_gives_fewer_children_to_a_surer_drafter() -> None:
    """Guards the paper's rule: one child at 0.9 and above, three below 0.4, two between; tau prunes."""
    chosen = policy("confidence", threshold=0.05).start(None, 8)
    tree = TokenTree.root(0)
    for best, kept in ((0.9, 1), (0.89, 2), (0.41, 2), (0.39, 3)):
        assert sum(chosen.children(tree, logs(best, 0.06, 0.05), [0])) == kept
    assert sum(chosen.children(tree, logs(0.3, 0.06, 0.04), [0])) == 2


def test_confidence_goes_deeper_where_much_is_accepted() -> None:
    """Guards the direction of the adaptation: high acceptance deepens, low acceptance does not."""
    chain = TokenTree.root(0).chain(range(2), logs(0.45, 0.99))
    depths = {}
    for accepted in (0, 2):
        chosen = policy("confidence", depth=8, base_depth=2).start(None, 8)
        for _ in range(100):
            chosen.observe(chain, torch.arange(accepted + 1))
        depths[accepted] = chosen.expand(chain, [2])
    assert depths == {0: [], 2: [2]}
