"""The model drafter against the same model fed every path from its start."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynatree import decoding
from dynatree.costs.step_rates import StepRates
from dynatree.drafting import model as model_module
from dynatree.drafting.model import Draft, Drafter
from dynatree.engine.backend import Output
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.graph import kernels
from dynatree.engine.graph.kernels.rows import Rows
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.sampling import DraftNoise, Sampler, Warpers
from dynatree.policies import chain
from dynatree.tree import ROOT, TokenTree
from tests import models
from tests.compiler import BOTH_WAYS, BY_LIBRARY
from tests.conftest import Build, Drafts
from tests.models import VOCABULARY
from tests.test_tree import line


def drafting(target: LanguageModel, calibration: StepRates | None = None) -> Draft:
    """The draft of one request on a model of its own."""
    model = DraftModel(target)
    return Draft(model, *model.new_caches(1), calibration)


def assert_proposals(drafter: Draft, tree: TokenTree, frontier: list[int], committed: list[int]) -> list[list[int]]:
    """Propose three children and compare them with those of the model without any cache; the tokens."""
    tokens, steps = models.proposed(drafter, drafter._model, tree, frontier, 3, committed)
    for row, node in enumerate(frontier):
        path = tree.tokens[line(tree, node)].tolist()
        logits = drafter._model.language_model.score(torch.tensor([*committed[:-1], *path]), 1)[0]
        best = torch.log_softmax(logits.float(), -1).topk(3)
        assert tokens[row] == best.indices.tolist()
        assert torch.allclose(torch.tensor(steps[row]), best.values, atol=1e-5)
    return tokens


@settings(max_examples=30)
@given(st.data())
def test_proposals_are_those_of_each_path_whatever_was_accepted(target: Build, data: st.DataObject) -> None:
    """Guards against a draft cache with stale slots, wrong positions, or a lag that is fed incompletely."""
    drafter = drafting(target())
    committed = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4))
    for _ in range(4):
        tree, frontier = TokenTree.root(committed[-1]), [0]
        for _ in range(data.draw(st.integers(0, 3))):
            tokens = assert_proposals(drafter, tree, frontier, committed)
            grown = models.grown(tree, frontier, tokens)
            expanded = data.draw(st.sets(st.integers(len(tree), len(grown) - 1), min_size=1, max_size=2))
            tree, frontier = grown, sorted(expanded)
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
    model, text = DraftModel(target()), [1, 2, 3]
    drafter, before, tree = Draft(model, *model.new_caches(1)), model.forwards, TokenTree.root(3)
    tokens, _ = models.proposed(drafter, drafter._model, tree, [0], 3, text)
    models.proposed(drafter, model, models.grown(tree, [0], tokens), [1, 2, 3], 2, text)
    assert model.forwards - before == 2


def test_more_children_than_tokens_are_all_tokens(target: Build) -> None:
    """Guards against topk beyond the vocabulary."""
    drafter = drafting(target())
    tokens, steps = models.proposed(drafter, drafter._model, TokenTree.root(3), [0], 1000, [3])
    assert sorted(tokens[0]) == list(range(VOCABULARY))
    assert max(steps[0]) <= 0


@pytest.fixture(params=BOTH_WAYS)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is proposed by our own library, and by torch."""
    library = kernels.made(Rows) if request.param == BY_LIBRARY else None
    monkeypatch.setattr(model_module, "rows", lambda: library)


@pytest.mark.parametrize("noise", ["shared", "none"])
@pytest.mark.parametrize("few", [3, 1000])
@pytest.mark.parametrize("ids", [None, [*range(20, 3, -1)]], ids=["all", "few"])
def test_proposals_are_the_best_by_the_noise_of_their_position(
    by: None, target: Build, ids: list[int] | None, few: int, noise: DraftNoise
) -> None:
    """Guards noise of other tokens or positions, scores that are not warped, and how likely each is among all."""
    model = DraftModel(target(), None if ids is None else torch.tensor(ids))
    whole = [*range(VOCABULARY)] if ids is None else ids
    sampler, text = Sampler(Warpers(temperature=0.7, top_k=7), 3, 0), [5, 2, 8]
    draft = Draft(model, *model.new_caches(1), sampler=sampler, noise=noise)
    tokens, steps = models.proposed(draft, model, TokenTree.root(8), [0], few, text)
    tree = models.grown(TokenTree.root(8), [0], [[row[0] for row in tokens]])
    below = models.proposed(draft, model, tree, [1], few, text)
    for path, found, of in (([], tokens[0], steps[0]), ([tokens[0][0]], below.tokens[0], below.steps[0])):
        logits = target().score(torch.tensor([*text, *path]), 1)[:, whole]
        scores = sampler.warpers.warped(logits)[0]
        if noise == "shared":
            scores = scores + torch.from_numpy(sampler.noise(np.array(whole), len(text) + len(path), VOCABULARY))
        best = torch.log_softmax(scores, 0).topk(min(few, len(whole)))
        possible = int(best.values.isfinite().sum())
        assert possible == min(few, 7) and len(found) == len(best.values)
        assert found[:possible] == [whole[column] for column in best.indices[:possible]]
        assert of[:possible] == pytest.approx(best.values[:possible].tolist(), abs=1e-4)
        assert all(step == -1e4 for step in of[possible:])


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_without_a_number_nothing_is_likely(by: None, target: Build, value: float) -> None:
    """Guards NaN that is sorted by, and what is proposed where nothing is possible."""
    model = DraftModel(target())
    for wrong in (slice(None), slice(1, None)):
        draft = Draft(model, *model.new_caches(1))
        logits = torch.zeros(1, VOCABULARY)
        logits[:, wrong] = value
        draft.draft_inputs(TokenTree.root(1), [0], torch.tensor([1]))
        (tokens,), (steps,) = draft.proposals(Output(logits), TokenTree.root(1), [0], 3, torch.tensor([1]))
        assert len(tokens) == len(steps) == 3 and len({*tokens}) == 3
        assert all(math.isfinite(step) and step <= 0 for step in steps) and steps[1:] == [-1e4] * 2


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
            _, steps = models.proposed(calibrated, drafter(kind), tree, [0], 2, committed[:size])
            calibrated.accept(ROOT)
        rates[kind] = math.exp(steps[0][0])
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
                proposed, _ = models.proposed(drafter, drafter._model, tree, [0], 2, committed)
                logits = model.score(torch.tensor(committed[begin:]), 1)[0]
                assert proposed[0] == logits.topk(2).indices.tolist()
                drafter.accept(ROOT)
                assert drafter._awaiting[0][0] == len(committed)
                assert drafter.cache.length == len(committed) - begin <= WINDOW
                drafted += 1
            committed = committed + data.draw(st.lists(tokens, min_size=1, max_size=5))
        # A level and a score each.
        assert model.forwards - before == 2 * drafted
