"""Trees out of a table of successors."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from dynatree import decoding
from dynatree.costs.step_rates import StepRates
from dynatree.decoding.speculative import Decoder
from dynatree.drafting import successors
from dynatree.engine.context import InContext
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.successors import NEVER, Successors
from dynatree.errors import UserError
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.logits_processors import NO_PROCESSORS
from dynatree.generation.request import Request
from dynatree.measuring.calibrate import followed
from dynatree.policies import cost_aware, fixed, threshold
from dynatree.tree import TokenTree
from tests import models
from tests.conftest import Build, Drafts

# After token t come t + 1 (0.6), t + 2 (0.25) and t + 3 (0.1), around the vocabulary.
STEPS = (0.6, 0.25, 0.1)
AFTER = (np.arange(models.VOCABULARY)[:, None] + np.array([1, 2, 3])) % models.VOCABULARY
TABLE = Successors(AFTER, np.log(np.full(AFTER.shape, STEPS, dtype=np.float32)))
LIMITS: dict[str, Any] = {"depth": 6, "branch": 3, "threshold": None, "budget": 30}


def tabled(target: Build, dtype: torch.dtype = torch.float64) -> DraftModel:
    """A drafter with the table above."""
    made = models.related(target(dtype=dtype))
    made.successors = TABLE
    return made


def started(drafter: DraftModel, request: Request, policy: Any) -> tuple[successors.Drafter, BatchPlanner]:
    """A drafter that has begun `request`."""
    made, planner = successors.Drafter(drafter), BatchPlanner(policy, models.calibration())
    planner.start([request])
    made.start([request])
    return made, planner


def paths(tree: TokenTree) -> dict[tuple[int, ...], float]:
    """The path to each node but the root, and how likely it is."""
    return {
        tuple(tree.tokens[tree.ancestors[node]].tolist()[1:]): float(tree.log_probs[node].exp())
        for node in range(1, len(tree))
    }


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are gone on from that a fast forward would not wait for."""
    monkeypatch.setattr(successors, "_EXTENDED", 0.25)


def test_a_tree_grows_where_its_paths_are_likely(target: Build, far: None) -> None:
    """Guards the tree itself: children in order, products along paths, none below what is unlikely."""
    request = models.request([5, 9], 20)
    drafter, planner = started(tabled(target), request, threshold.Policy(**LIMITS))
    (tree,) = drafter.propose([request], planner)
    found = paths(tree)
    assert found[(10,)] == pytest.approx(0.6) and found[(11,)] == pytest.approx(0.25)
    assert found[(10, 11, 12)] == pytest.approx(0.6**3) and found[(10, 12)] == pytest.approx(0.6 * 0.25)
    assert (12,) in found and min(found.values()) >= 0.05
    assert all(parent >= 0.249 for path in found if (parent := found.get(path[:-1], 1.0)))
    assert drafter.forwards(request) == 0


@pytest.mark.parametrize(("left", "deepest"), [(2, 1), (3, 2)])
def test_it_is_no_deeper_than_tokens_are_wanted(target: Build, left: int, deepest: int) -> None:
    """Guards against nodes that no round may emit."""
    request = models.request([5, 9], left)
    drafter, planner = started(tabled(target), request, threshold.Policy(**LIMITS))
    assert drafter.propose([request], planner)[0].depth == deepest


def test_the_policys_limits_hold(target: Build, far: None) -> None:
    """Guards against a budget or a threshold that a tree in one go passes by."""
    request = models.request([5, 9], 20)
    for policy in (fixed.Policy(depth=2, branch=2, budget=3), threshold.Policy(**{**LIMITS, "threshold": 0.2})):
        drafter, planner = started(tabled(target), request, policy)
        (tree,) = drafter.propose([request], planner)
        if policy.threshold if isinstance(policy, threshold.Policy) else None:
            assert set(paths(tree)) == {(10,), (11,), (10, 11), (10, 11, 12)}
        else:
            assert len(tree) == 4 and tree.depth <= 2


def test_children_that_are_there_share_with_the_others(target: Build, far: None) -> None:
    """Guards against a token that comes twice below a node, and against siblings that sum to more than 1."""
    request = models.request([5, 9], 20)
    drafter, planner = started(tabled(target), request, threshold.Policy(**LIMITS))
    there = TokenTree.root(9).chain([10], [math.log(0.7)])
    grown = drafter.extended(request, there, planner.growth(request))
    children = [path for path in paths(grown) if len(path) == 1]
    assert sorted(children) == [(10,), (11,), (12,)][: len(children)] and len(children) == len(set(children))
    assert sum(paths(grown)[path] for path in children) <= 1 + 1e-6
    assert paths(grown)[(11,)] == pytest.approx(0.25 * 0.3 / 0.4)
    # What hangs below a leaf alone leaves its siblings out.
    below = drafter.extended(request, there, planner.growth(request), below_leaves=True)
    assert [path for path in paths(below) if len(path) == 1] == [(10,)] and (10, 11) in paths(below)


def test_what_is_right_less_often_than_measured_is_trusted_less(target: Build) -> None:
    """Guards text that the table was not made of: its claims sink while it is wrong, and rise again."""
    rates = StepRates(ranks=[(0.0, 1.0)], rates=[0.5], lookup=[], successors=[(0.0, 1.0)])
    follower = successors.Follower(TABLE, rates, NO_PROCESSORS, None)
    text = [0]

    def claim() -> float:
        return math.exp(follower.begin(text, 1)[0][1])

    first = claim()
    assert first == pytest.approx(0.6, abs=1e-3)
    for _ in range(10):
        text.append((text[-1] + 30) % models.VOCABULARY)
        wrong = claim()
    for _ in range(40):
        text.append((text[-1] + 1) % models.VOCABULARY)
        right = claim()
    assert wrong < 0.5 * first and right > 1.5 * wrong


def test_claims_come_to_be_as_often_right_as_they_say(target: Build) -> None:
    """Guards against a correction that is measured by claims it has corrected itself: it goes half of the way."""
    rates = StepRates(ranks=[(0.0, 1.0)], rates=[0.5], lookup=[], successors=[(0.0, 1.0)])
    follower, text, claimed = successors.Follower(TABLE, rates, NO_PROCESSORS, None), [0], []
    for place in range(400):
        claimed.append(math.exp(follower.begin(text, 1)[0][1]))
        # One in five is what the table says, which claims 0.6.
        text.append((text[-1] + (1 if place % 5 == 0 else 30)) % models.VOCABULARY)
    # Drawn to the claim by three hits in ten; by claims of its own it would be 0.37.
    assert sum(claimed[200:]) / 200 == pytest.approx(0.27, abs=0.03)


def test_what_was_never_seen_is_not_proposed(target: Build) -> None:
    """Guards against places of the table that hold nothing, to which a flat curve gives a chance: one token twice."""
    ids, log_probs = AFTER.copy(), TABLE.log_probs.copy()
    ids[:, 1:], log_probs[:, 1:] = 0, NEVER
    flat = [(0.0, 0.0)]
    rates = StepRates(ranks=flat, rates=[0.5], lookup=[], successors=flat)
    follower = successors.Follower(Successors(ids, log_probs), rates, NO_PROCESSORS, None)
    assert [math.exp(step) >= 0.03 for _, step in follower.begin([4, 9], 3)] == [True, False, False]


def test_a_penalty_lowers_what_the_text_has(target: Build) -> None:
    """Guards against drafts that a repetition penalty has made unlikely."""
    options = models.wanted(20, repetition_penalty=3.0)
    follower = successors.Follower(TABLE, None, options.processors, None)
    assert [token for token, _ in follower.begin([4, 9], 3)] == [10, 11, 12]
    assert [token for token, _ in follower.begin([4, 9, 10, 9], 3)][-1] == 10


def test_drawn_text_has_the_targets_noise(target: Build) -> None:
    """Guards the coupling: a table that says what the target says is right always, by the noise, and seldom without."""
    logits = torch.full((models.VOCABULARY, models.VOCABULARY), -30.0)
    logits.scatter_(1, torch.from_numpy(AFTER), torch.from_numpy(TABLE.log_probs))
    options = models.wanted(40, do_sample=True, temperature=1.0, seed=4)
    sampler, text = options.sampler(), [3]
    assert sampler is not None
    for _ in range(40):
        text.append(sampler.token(logits[text[-1]], len(text)))
    stated, right = followed(TABLE, [([3], text[1:])], options.keyed([0]))
    assert right[:, 0].all() and 0.4 < float(stated[:, 0].exp().mean()) < 1
    unshared = successors.Follower(TABLE, None, options.processors, None)
    assert sum(unshared.begin(text[:n], 1)[0][0] == text[n] for n in range(1, 41)) < 35


def test_a_row_is_drawn_to_what_the_target_says(target: Build) -> None:
    """Guards text that the table was not made of: what came once counts half, what comes again and again nearly all."""
    follower = successors.Follower(TABLE, None, NO_PROCESSORS, None)
    said = torch.full((models.VOCABULARY,), -20.0)
    said[40], said[11] = math.log(0.7), math.log(0.3)
    follower.learn(9, said.numpy())
    after = {token: math.exp(step) for token, step in follower.begin([4, 9], 3)}
    assert after == pytest.approx({40: 0.35, 10: 0.3, 11: 0.275})
    for _ in range(20):
        follower.learn(9, said.numpy())
    (first, step), *_ = follower.begin([4, 9, 9], 3)
    assert first == 40 and math.exp(step) == pytest.approx(0.7, abs=0.02)
    # Only what was said behind that token.
    assert [token for token, _ in follower.begin([4, 9, 9, 5], 3)] == [6, 7, 8]
    # As many of a token as before, and places that held nothing stay unlikely.
    ids, log_probs = AFTER.copy(), TABLE.log_probs.copy()
    ids[:, 1:], log_probs[:, 1:] = 0, NEVER
    follower = successors.Follower(Successors(ids, log_probs), None, NO_PROCESSORS, None)
    follower.learn(9, said.numpy())
    assert [token for token, step in follower.begin([4, 9], 3) if math.exp(step) > 0.01] == [40, 10, 11]


@pytest.mark.parametrize("kind", [{"repetition_penalty": 1.3}, {"do_sample": True, "temperature": 0.8}], ids=str)
@pytest.mark.parametrize("reads", [False, True], ids=["tokens", "states"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_decoding_learns_what_calibration_follows(
    target: Build, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, reads: bool, kind: dict[str, Any]
) -> None:
    """Guards the curves: they are fitted to claims that decoding makes, after as much was learnt and read as there.

    And from logits that no processor has written into, which they do in float32.
    """
    model = target(dtype=dtype)
    # So small a model's logits lie lower than a trained one's, and a penalty lowers them by less.
    monkeypatch.setattr(successors, "LEVEL", 1.0)
    drafter, options = tabled(target, dtype), models.wanted(30, **kind)
    table = drafter.successors = TABLE._replace(context=models.context(model) if reads else None)
    claims: dict[int, list[tuple[int, float]]] = {}
    begin = successors.Follower.begin

    def told(follower: Any, committed: Any, branch: int) -> Any:
        found = begin(follower, committed, branch)
        claims[len(committed)] = found[:3]
        return found

    monkeypatch.setattr(successors.Follower, "begin", told)
    knobs = {"policy": "threshold", "drafting": "successors", "depth": 1, "branch": 8, "threshold": None, "budget": 8}
    trace = Decoder(model, drafter, None, **knobs).decode([3, 1, 4], options)
    assert any(one.accepted for one in trace.rounds) and len(trace.rounds) > 3
    seen, claims = claims, {}
    followed(table, [([3, 1, 4], trace.output)], options.keyed([0]), model, drafter.in_context)
    for place, found in seen.items():
        assert [token for token, _ in found] == [token for token, _ in claims[place]]
        assert [step for _, step in found] == pytest.approx([step for _, step in claims[place]], abs=1e-3)
    monkeypatch.setattr(successors.Drafter, "learn", lambda *_: None)
    blind = Decoder(model, drafter, None, **knobs).decode([3, 1, 4], options)
    assert blind.output == trace.output and len(blind.rounds) > len(trace.rounds)


def test_the_targets_state_says_which_successors_fit(target: Build) -> None:
    """Guards what is read: the last layer's last state, at two levels and not below; together as likely as before."""
    model = target()
    context = InContext(models.context(model), model.model.get_input_embeddings().weight)
    alone, read = (successors.Follower(TABLE, None, NO_PROCESSORS, None, of) for of in (None, context))
    text, states = [4, 9], model.states(torch.tensor([4, 9, 2]), [1, 2])
    assert read.begin(text, 3) == alone.begin(text, 3)
    for follower in (alone, read):
        # Of two rounds, of which the first one did not ask.
        follower.read(states[:1])
        follower.read(states[:2])
    root, others = (dict(follower.begin([*text, 2], 3)) for follower in (alone, read))
    width = states.shape[1] // 2
    hidden = context.hidden(states[1, width:].numpy().astype(np.float32), 2)
    _, wanted = context.row(2, np.array([3, 4, 5]), np.log(np.array(STEPS, np.float32)), hidden)
    assert [others[token] for token in (3, 4, 5)] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert others != root and sum(map(math.exp, others.values())) == pytest.approx(sum(STEPS))
    for path, differs in (((3,), True), ((3, 4), False)):
        assert (dict(read.after(path, 3, {})) != dict(alone.after(path, 3, {}))) == differs
    # Unknown again.
    read.read(states[:0])
    assert read.begin([*text, 2, 5], 3) == alone.begin([*text, 2, 5], 3)


def test_what_noise_prefers_stands_beside_a_row(target: Build) -> None:
    """Guards text that is drawn: a token that no row has is proposed where its noise is great."""
    model, options = target(), models.wanted(5, do_sample=True, temperature=1.0, seed=3)
    context = InContext(models.context(model), model.model.get_input_embeddings().weight)
    sampler = options.sampler()
    assert sampler is not None
    follower = successors.Follower(TABLE, None, NO_PROCESSORS, sampler, context)
    text, beyond = [4, 9], 0
    for length in range(2, 40):
        follower.read(model.states(torch.tensor(text), [2]))
        (first, _), *_ = follower.begin([*text, 7], 3)
        noise = sampler.noise(np.arange(models.VOCABULARY), length + 1, models.VOCABULARY)
        beyond += first not in (8, 9, 10)
        assert first in (8, 9, 10) or noise[first] > noise[[8, 9, 10]].max()
        text.append(7)
    assert 0 < beyond < 20


def test_hybrid_takes_both_where_nodes_are_priced(target: Build, drafter: Drafts) -> None:
    """Guards that the table is used: more tokens a round where levels are dear, and the same output."""
    prompt, knobs = [3, 1, 4, 1, 5], {"policy": "cost_aware", "drafting": "hybrid", **LIMITS}
    dear = models.calibration(level=5.0)
    with_table = drafter("related")
    without = models.related(target())
    without.successors = None
    first = Decoder(target(), with_table, dear, **knobs).decode(prompt, models.wanted(40))
    second = Decoder(target(), without, dear, **knobs).decode(prompt, models.wanted(40))
    assert first.output == second.output
    assert sum(one.accepted for one in first.rounds) > sum(one.accepted for one in second.rounds)
    # A chain's nodes are all verified: no table there.
    chain = Decoder(target(), with_table, None, policy="chain", drafting="hybrid", draft_tokens=2)
    assert all(one.drafted <= 2 for one in chain.decode(prompt, models.wanted(40)).rounds)


def test_a_level_is_worth_what_the_table_has_not() -> None:
    """Guards against drafting for what is to be had without it."""
    growth = cost_aware.Policy(**LIMITS).start(models.calibration(level=0.3), 16)
    root = TokenTree.root(3)
    assert growth.expand(root, [0])
    # From the first round on.
    growth.offered([0.5, 0.8])
    assert not growth.expand(root, [0])
    for _ in range(40):
        growth.offered([0.0, 0.0])
    assert growth.expand(root, [0])


def test_without_a_table_it_is_refused(target: Build) -> None:
    """Guards a user whose drafter has none, before any prompt."""
    knobs = {"policy": "threshold", "drafting": "successors", **LIMITS}
    bare = models.related(target())
    bare.successors = None
    with pytest.raises(UserError, match=r"no successors.safetensors, which `dynatree distil .* writes; .* lookup"):
        decoding.build(target(), bare, "speculative", knobs, None)
    with pytest.raises(ValueError, match="drafting: successors; the trees of policy optimal"):
        Decoder.check({"policy": "optimal", "drafting": "successors", "depth": 4, "branch": 3, "budget": 12})
