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
        ("chain", {"draft_tokens": 3, "branch": 2}, "branch"),
    ],
)
def test_knobs_that_make_no_sense_are_refused_by_name(name: str, knobs: dict[str, Any], complaint: str) -> None:
    """Guards against typing errors that silently run something else, and against trees without bound."""
    with pytest.raises(ValueError, match=complaint):
        policy(name, **knobs)


def tree_of(log_probs: list[float]) -> TokenTree:
    count = len(log_probs)
    return TokenTree.root(0).extend(torch.zeros(count, dtype=torch.long), torch.arange(count), torch.tensor(log_probs))


def test_threshold_keeps_children_of_exactly_tau() -> None:
    """Guards against > where the definition has >=, and against thresholds applied to logarithms."""
    log_probs = torch.tensor([1.0, 0.5, 0.49]).log()
    assert policy("threshold", **{**THRESHOLD, "threshold": 0.5}).children(tree_of([]), log_probs).tolist() == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("threshold", [None, 0])
def test_no_threshold_keeps_impossible_children_too(threshold: float | None) -> None:
    """Guards against log(0)."""
    kept = policy("threshold", **{**THRESHOLD, "threshold": threshold}).children(tree_of([]), torch.tensor([-math.inf]))
    assert kept.tolist() == [True]


def test_threshold_expands_and_selects_only_the_best_nodes() -> None:
    """Guards against expanding nodes that can no longer be verified."""
    tree = tree_of([-3.0, -1.0, -2.0])
    chosen = policy("threshold", **{**THRESHOLD, "budget": 2})
    assert chosen.expand(tree, torch.tensor([1, 2, 3])).tolist() == [2, 3]
    assert chosen.select(tree).tolist() == [0, 2, 3]


def test_fixed_stops_at_its_budget_breadth_first() -> None:
    """Guards against a budget that counts the root."""
    chosen = policy("fixed", **{**FIXED, "budget": 3})
    assert chosen.children(tree_of([-1.0]), torch.tensor([-9.0, -1.0, -1.0])).tolist() == [True, True, False]
    assert chosen.expand(tree_of([-1.0, -1.0]), torch.tensor([1, 2])).tolist() == [1, 2]
    assert chosen.expand(tree_of([-1.0, -1.0, -1.0]), torch.tensor([2, 3])).tolist() == []


def test_chain_is_one_child_a_level() -> None:
    """Guards against a chain that branches."""
    chosen = policy("chain", draft_tokens=5)
    assert (chosen.branch, chosen.depth) == (1, 5)
    assert chosen.select(tree_of([-1.0])).tolist() == [0, 1]
