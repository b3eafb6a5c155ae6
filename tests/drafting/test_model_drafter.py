"""The model drafter against the same model fed every path from its start."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynatree import decoding
from dynatree.costs.step_rates import StepRates
from dynatree.drafting.model import Draft, Drafter
from dynatree.engine.backend import Output
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.policies import chain
from dynatree.tree import TokenTree
from tests import models
from tests.conftest import Build, Drafts
from tests.models import VOCABULARY
from tests.test_tree import line


def drafting(target: LanguageModel, calibration: StepRates | None = None) -> Draft:
    """The draft of one request on a model of its own."""
    model = DraftModel(target)
    return Draft(model, *model.new_caches(1), calibration)


def assert_proposals(drafter: Draft, tree: TokenTree, frontier: torch.Tensor, committed: list[int]) -> torch.Tensor:
    """Propose three children and compare them with those of the model without any cache; the tokens."""
    tokens, steps = models.proposed(drafter, drafter._model, tree, frontier, 3, committed)
    for row, node in enumerate(frontier.tolist()):
        path = tree.tokens[line(tree, node)].tolist()
        logits = drafter._model.language_model.score(torch.tensor([*committed[:-1], *path]), 1)[0]
        best = torch.log_softmax(logits.float(), -1).topk(3)
        assert tokens[row].tolist() == best.indices.tolist()
        assert torch.allclose(steps[row], best.values, atol=1e-5)
    return tokens


@settings(max_examples=30)
@given(st.data())
def test_proposals_are_those_of_each_path_whatever_was_accepted(target: Build, data: st.DataObject) -> None:
    """Guards against a draft cache with stale slots, wrong positions, or a lag that is fed incompletely."""
    drafter = drafting(target())
    committed = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4))
    for _ in range(4):
        tree, frontier = TokenTree.root(committed[-1]), torch.zeros(1, dtype=torch.long)
        for _ in range(data.draw(st.integers(0, 3))):
            tokens = assert_proposals(drafter, tree, frontier, committed)
            grown = tree.extend(frontier.repeat_interleave(3), tokens.flatten(), torch.zeros(tokens.numel()))
            expanded = data.draw(st.sets(st.integers(len(tree), len(grown) - 1), min_size=1, max_size=2))
            tree, frontier = grown, torch.tensor(sorted(expanded))
        kept = line(tree, data.draw(st.integers(0, len(tree) - 1)))
        drafter.accept(torch.tensor(kept))
        committed += [*tree.tokens[kept[1:]].tolist(), data.draw(st.integers(0, VOCABULARY - 1))]
        fresh = KeyValueCache()
        if length := drafter.cache.length:
            drafter._model.language_model.forward(torch.tensor(committed[:length]), fresh)
        for ours, theirs in zip(drafter.cache.states.layers, fresh.states.layers, strict=False):
            assert torch.allclose(ours.keys[:, :, :length], theirs.keys[:, :, :length])
            assert torch.allclose(ours.values[:, :, :length], theirs.values[:, :, :length])


def test_start_forgets_the_last_request(target: Build) -> None:
    """Guards against a second prompt drafted behind the first one's cache."""
    drafter, planner = Drafter(DraftModel(target())), BatchPlanner(chain.Policy(draft_tokens=2), None)
    found = []
    for prompt in ([1, 2, 3], [7, 8, 9], [1, 2, 3]):
        request = models.request(prompt, 4)
        planner.start([request])
        drafter.start([request])
        (tree,) = drafter.propose([request], planner)
        assert drafter.forwards(request) == 2
        found.append(tree.tokens.tolist())
    assert found[0] == found[2] != found[1]


def test_one_forward_a_level(target: Build) -> None:
    """Guards against one call a node."""
    model, text, root = DraftModel(target()), [1, 2, 3], torch.zeros(1, dtype=torch.long)
    drafter, before, tree = Draft(model, *model.new_caches(1)), model.forwards, TokenTree.root(3)
    tokens, steps = models.proposed(drafter, drafter._model, tree, root, 3, text)
    grown = tree.extend(torch.zeros(3, dtype=torch.long), tokens[0], steps[0])
    models.proposed(drafter, model, grown, torch.arange(1, 4), 2, text)
    assert model.forwards - before == 2


def test_more_children_than_tokens_are_all_tokens(target: Build) -> None:
    """Guards against topk beyond the vocabulary."""
    root = torch.zeros(1, dtype=torch.long)
    drafter = drafting(target())
    tokens, steps = models.proposed(drafter, drafter._model, TokenTree.root(3), root, 1000, [3])
    assert sorted(tokens[0].tolist()) == list(range(VOCABULARY))
    assert (steps <= 0).all()


def test_depth_ends_with_the_drafters_context(target: Build) -> None:
    """Guards against positions beyond the drafter's table, and against stopping a level early."""
    drafter = drafting(target("gpt2"))
    limit = target("gpt2").context_limit
    assert limit and [drafter.begin_round([0] * (limit + extra)) for extra in (-1, 0, 1, 5)] == [2, 1, 0, 0]


def test_what_was_proposed_is_scored_against_what_was_committed(target: Build, drafter: Drafts) -> None:
    """Guards against outcomes read one position off: a right drafter's confidence must rise, a wrong one's fall."""
    rates = {}
    for kind in ("same", "wrong"):
        steps_of = StepRates(ranks=[(0.0, 0.0), (-2.0, 0.0)], rates=[0.5], lookup=[])
        calibrated = Draft(drafter(kind), *drafter(kind).new_caches(1), steps_of)
        committed = [3, 1, 4, *models.generated(target(), [3, 1, 4], 24)]
        for size in range(4, len(committed)):
            calibrated.begin_round(committed[:size])
            tree = TokenTree.root(committed[size - 1])
            root = torch.zeros(1, dtype=torch.long)
            _, steps = models.proposed(calibrated, drafter(kind), tree, root, 2, committed[:size])
            calibrated.accept(torch.zeros(1, dtype=torch.long))
        rates[kind] = float(steps[0, 0].exp())
    assert rates["same"] > 0.7 and rates["wrong"] < 0.25


@pytest.mark.parametrize("policy", ["chain", "cost_aware", "confidence"])
def test_a_drafter_without_numbers_is_never_right_and_stops_nothing(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Guards against NaN in a tree or record: half precision overflows, a draft vocabulary may be banned whole."""
    helper = drafter("related")
    knobs: dict[str, Any] = {"chain": {"draft_tokens": 2}}
    knobs["confidence"] = {"depth": 3, "base_depth": 2, "threshold": 0.05, "budget": 9}
    knobs["cost_aware"] = {"depth": 3, "branch": 2, "threshold": 0.01, "budget": 9}
    wrong = decoding.build(
        target(), helper, "speculative", {"policy": policy, **knobs[policy]}, models.calibration(1e-4)
    )
    draft_batch = helper.draft_batch
    monkeypatch.setattr(helper, "draft_batch", lambda feeds: [Output(x.logits * torch.nan) for x in draft_batch(feeds)])
    trace = wrong.decode([3, 1, 4], models.wanted(12))
    assert trace.output == models.generated(target(), [3, 1, 4], 12)
    assert trace.draft_forwards > 0
    assert all(math.isfinite(value) for fact in trace.rounds for value in (fact.tree or {"log_probs": []})["log_probs"])


WINDOW = 6


@settings(max_examples=30)
@given(st.data())
def test_a_window_shows_the_end_of_the_text_alone(target: Build, data: st.DataObject) -> None:
    """Guards against slots of what lies before the window, a text cut in every round, and outcomes read elsewhere."""
    model = target()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model.config, "draft_window", WINDOW, raising=False)
        drafter = drafting(model, StepRates(ranks=[(0.0, 1.0)], rates=[0.5], lookup=[]))
        tokens = st.integers(0, VOCABULARY - 1)
        committed, begin, before = data.draw(st.lists(tokens, min_size=1, max_size=20)), 0, model.forwards
        drafted = 0
        for _ in range(8):
            drafter.begin_round(committed)
            if len(committed) - begin > WINDOW:
                begin = len(committed) - WINDOW // 2
            assert not any(place < len(committed) for place, *_ in drafter._awaiting)
            if data.draw(st.booleans()):
                tree = TokenTree.root(committed[-1])
                proposed, _ = models.proposed(
                    drafter, drafter._model, tree, torch.zeros(1, dtype=torch.long), 2, committed
                )
                logits = model.score(torch.tensor(committed[begin:]), 1)[0]
                assert proposed[0].tolist() == logits.topk(2).indices.tolist()
                drafter.accept(torch.zeros(1, dtype=torch.long))
                assert drafter._awaiting[0][0] == len(committed)
                assert drafter.cache.length == len(committed) - begin <= WINDOW
                drafted += 1
            committed = committed + data.draw(st.lists(tokens, min_size=1, max_size=5))
        # A level and a score each.
        assert model.forwards - before == 2 * drafted
