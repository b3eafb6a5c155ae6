"""Lookup and model in one tree."""

import math
from collections.abc import Callable
from itertools import cycle

import pytest

from dynatree.costs.step_rates import OnlineCorrection
from dynatree.decoding.speculative import Decoder
from dynatree.drafting import hybrid
from dynatree.drafting.hybrid import share_out
from dynatree.drafting.model import Draft, Proposals
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.policies import cost_aware
from dynatree.tree import TokenTree
from tests import models
from tests.conftest import Build

LIMITS = {"depth": 8, "branch": 3, "threshold": 0.01, "budget": 16}


def proposed(target: LanguageModel, claim: float, token: int) -> tuple[list[int], list[float]]:
    """The model's children of a root whose lookup child `token` claims `claim`: tokens and probabilities."""
    tree = TokenTree.root(4).chain([token], [math.log(claim)])
    (tokens,), (steps,) = share_out(tree, [0], own(target))
    return tokens, [math.exp(step) for step in steps]


def own(target: LanguageModel) -> Proposals:
    """What the model proposes by itself."""
    model = DraftModel(target)
    return models.proposed(Draft(model, *model.new_caches(1)), model, TokenTree.root(4), [0], 3, [2, 4])


def test_siblings_never_sum_to_more_than_one(target: Build) -> None:
    """Guards against two drafters that each claim the whole probability."""
    best = own(target()).tokens[0]
    outsider = next(token for token in range(models.VOCABULARY) if token not in best)
    for token in (outsider, *best):
        for claim in (0.05, 0.6, 0.99):
            tokens, steps = proposed(target(), claim, token)
            others = sum(p for t, p in zip(tokens, steps, strict=True) if t != token)
            mine = max([claim, *(p for t, p in zip(tokens, steps, strict=True) if t == token)])
            assert others + mine <= 1 + 3e-4


def test_a_node_without_a_lookup_child_is_the_models_alone(target: Build) -> None:
    """Guards against claims that leak to other nodes."""
    found = own(target())
    assert share_out(TokenTree.root(4), [0], found) is found


def test_without_a_model_it_is_lookup(target: Build) -> None:
    """Guards a user who has no drafter."""
    knobs = {"policy": "chain", "draft_tokens": 8}
    prompt = [3, 1, 4] * 4
    lookup = Decoder(target(), None, None, drafting="lookup", **knobs).decode(prompt, models.wanted(24))
    hybrid = Decoder(target(), None, None, drafting="hybrid", **knobs).decode(prompt, models.wanted(24))
    assert hybrid.rounds == lookup.rounds and hybrid.draft_forwards == 0
    assert any(round.drafted for round in hybrid.rounds)


@pytest.mark.parametrize("table", [False, True])
def test_a_round_at_rest_has_lookups_nodes_alone(target: Build, monkeypatch: pytest.MonkeyPatch, table: bool) -> None:
    """Guards what resting is for: no draft forward, nothing of the table, no match of one token; the same text."""
    known, knobs = models.calibration(level=0.01), {"policy": "cost_aware", **LIMITS}
    helper = models.related(target())
    helper.successors = helper.successors if table else None

    def drafted(prompt: list[int], looks: bool, drafting: str = "hybrid") -> tuple[float, int]:
        """Nodes a round, and draft forwards."""
        monkeypatch.setattr(BatchPlanner, "looks", lambda *_: looks)
        trace = Decoder(target(), helper, known, drafting=drafting, **knobs).decode(prompt, models.wanted(24))
        assert trace.output == models.generated(target(), prompt, 24)
        return sum(one.drafted for one in trace.rounds) / len(trace.rounds), trace.draft_forwards

    looking, resting, lookup = (drafted([3, 1, 4, 1, 5], *how) for how in ((True,), (False,), (True, "lookup")))
    assert looking[0] > lookup[0] > resting[0] and resting[1] == 0
    assert table or looking[1] > 0
    # What looping text has by lookup it keeps.
    assert drafted([2, 7] * 6, False)[0] > 1


@pytest.mark.parametrize("make", [models.related, models.reading])
def test_a_model_goes_on_behind_rests(
    target: Build, monkeypatch: pytest.MonkeyPatch, make: Callable[[LanguageModel], DraftModel]
) -> None:
    """Guards what a round that rests leaves alone: states that a model reads are there, and what it proposed before is
    scored when it is asked again."""
    turns, scored = cycle([True, False, False]), list[float]()
    monkeypatch.setattr(BatchPlanner, "looks", lambda *_: next(turns))
    observe = OnlineCorrection.observe

    def observed(correction: OnlineCorrection, stated: float, hit: bool) -> None:
        scored.append(stated)
        observe(correction, stated, hit)

    monkeypatch.setattr(OnlineCorrection, "observe", observed)
    helper, known = make(target()), models.calibration(level=1e-6)
    helper.successors = None
    decoder = Decoder(target(), helper, known, drafting="hybrid", policy="cost_aware", **LIMITS)
    trace = decoder.decode([3, 1, 4, 1, 5], models.wanted(24))
    assert trace.output == models.generated(target(), [3, 1, 4, 1, 5], 24)
    drafted = [bool(one.draft_forwards) for one in trace.rounds]
    # Before the last token there is nothing to draft.
    assert sum(drafted) > 2 and all(drafted[:-1:3]) and not any(drafted[1::3] + drafted[2::3])
    # The last one's are not known of.
    assert len(scored) >= sum(drafted) - 1


@pytest.mark.parametrize(("prompt", "came", "kept"), [([5, 1, 9, 1], 9, False), ([5, 1, 9, 3, 1, 9], 3, True)])
def test_what_a_rest_would_have_is_told(
    target: Build, monkeypatch: pytest.MonkeyPatch, prompt: list[int], came: int, kept: bool
) -> None:
    """Guards rests that are chosen by nodes which they would not have: those behind matches of one token."""
    told: list[TokenTree] = []
    monkeypatch.setattr(BatchPlanner, "may_rest", lambda *_: True)
    monkeypatch.setattr(BatchPlanner, "looked", lambda _, requests, at_rest: told.extend(at_rest))
    helper, request = models.related(target()), models.request(prompt, 8)
    planner = BatchPlanner(cost_aware.Policy(**LIMITS), models.calibration(level=1e3))
    drafter = hybrid.Drafter(helper)
    planner.start([request])
    drafter.start([request])
    (found,) = drafter.propose([request], planner)
    (at_rest,) = told
    assert came in found.tokens[found.parents == 0].tolist()
    assert (len(at_rest) > 1) == kept
