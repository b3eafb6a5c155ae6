"""Simulated decoding: rounds against those of real decoding, seconds against numbers worked out by hand."""

from typing import Any

import pytest
import torch

from dynatree.costs.cost_table import CostTable, Curve
from dynatree.decoding import prompt_lookup, speculative
from dynatree.distil import simulate
from dynatree.distil.simulate import Children, Clock, Pair, Round
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.trace import Trace
from dynatree.measuring.calibrate import teacher_forced
from dynatree.policies.optimal import Policy, StaticTree
from tests import models
from tests.conftest import Build, Drafts

PROMPTS = ([3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 5, 3, 5])
TOKENS = 60
BRANCHING = ((1, 2), (3,), (), ())  # of the root's two children the first has a child
NONE = 9  # no rank that was looked at


def real(target: LanguageModel, drafter: DraftModel | None, prompt: list[int], **knobs: Any) -> Trace:
    return speculative.Decoder(target, drafter, models.calibration(0.001, 0.001), **knobs).decode(
        prompt, models.wanted(TOKENS)
    )


def facts(trace: Trace) -> list[tuple[int, int, int]]:
    return [(one.drafted, one.accepted, one.draft_forwards) for one in trace.rounds]


def simulated(
    children: Children, drafter: DraftModel, pair: Pair, target: LanguageModel | None = None
) -> list[tuple[int, int, int]]:
    rounds = simulate.tree_rounds(children, simulate.ranks(drafter, pair, target))
    return [(one.drafted, one.accepted, len(one.fed)) for one in rounds]


def full(depth: int, branch: int, budget: int) -> Children:
    """The full tree, breadth first, cut at `budget` nodes."""
    children: list[list[int]] = [[]]
    level = [0]
    for _ in range(depth):
        below = []
        for node in level:
            for _ in range(min(branch, budget + 1 - len(children))):
                children[node].append(len(children))
                below.append(len(children))
                children.append([])
        level = below
    return tuple(map(tuple, children))


@pytest.mark.parametrize("kind", models.DRAFTERS)
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_a_chain_has_the_rounds_of_real_decoding(target: Build, drafter: Drafts, kind: str, tokens: int) -> None:
    """Guards against teacher forcing that is off by a position, and against a last round drafted too far."""
    for prompt in PROMPTS:
        trace = real(target(), drafter(kind), prompt, policy="chain", draft_tokens=tokens)
        assert simulated(simulate.chain(tokens), drafter(kind), (prompt, trace.output)) == facts(trace)


@pytest.mark.parametrize("kind", ["related", "unrelated"])
@pytest.mark.parametrize(("depth", "branch", "budget"), [(3, 2, 14), (2, 3, 9), (4, 2, 11)])
def test_a_fixed_tree_has_the_rounds_of_real_decoding(
    target: Build, drafter: Drafts, kind: str, depth: int, branch: int, budget: int
) -> None:
    """Guards against ranks and levels that are mixed up, and against a budget that cuts in the wrong place."""
    knobs = {"policy": "fixed", "depth": depth, "branch": branch, "budget": budget}
    for prompt in PROMPTS:
        trace = real(target(), drafter(kind), prompt, **knobs)
        assert simulated(full(depth, branch, budget), drafter(kind), (prompt, trace.output)) == facts(trace)


@pytest.mark.parametrize("children", [simulate.chain(1), simulate.chain(4), full(3, 2, 14)], ids=["K1", "K4", "tree"])
def test_a_drafter_that_reads_has_the_rounds_of_real_decoding(target: Build, children: Children) -> None:
    """Guards against deeper levels that are taken to have the target's states, as the first has."""
    drafter = models.reading(target())
    chain = all(len(below) < 2 for below in children)
    knobs = {"policy": "chain", "draft_tokens": len(children) - 1} if chain else {"policy": "fixed"}
    limits = {} if chain else {"depth": 3, "branch": 2, "budget": 14}
    for prompt in PROMPTS:
        trace = real(target(), drafter, prompt, **knobs, **limits)
        assert simulated(children, drafter, (prompt, trace.output), target()) == facts(trace)


def test_the_optimal_tree_has_the_rounds_of_real_decoding(target: Build, drafter: Drafts) -> None:
    """The same for an uneven tree, in which some leaves are above others."""
    limits = {"depth": 4, "branch": 3, "budget": 9}
    growth: Any = Policy(**limits).start(models.calibration(0.001, 0.001), context=64)
    static: StaticTree = growth._static
    assert len({len(below) for below in static.children}) > 2
    for prompt in PROMPTS:
        trace = real(target(), drafter("related"), prompt, policy="optimal", **limits)
        assert simulated(static.children, drafter("related"), (prompt, trace.output)) == facts(trace)


@pytest.mark.parametrize("tokens", [1, 4, 20])
def test_lookup_has_the_rounds_of_real_decoding(target: Build, tokens: int) -> None:
    """Guards against an index that sees the future, and against chains longer than what is wanted."""
    for prompt in PROMPTS:
        trace = real(target(), None, prompt, policy="chain", drafting="lookup", draft_tokens=tokens)
        rounds = simulate.lookup_rounds((prompt, trace.output), tokens, simulate.own_lookup())
        assert [(one.drafted, one.accepted) for one in rounds] == [(one.drafted, one.accepted) for one in trace.rounds]
    assert any(one.accepted for one in rounds) and any(not one.accepted for one in rounds)


@pytest.mark.parametrize(("tokens", "ngram"), [(1, 2), (5, 3), (10, 2)])
def test_prompt_lookup_has_the_rounds_of_transformers(target: Build, tokens: int, ngram: int) -> None:
    """Guards against another lookup under transformers' name. Its first round holds the prefill, ours never does."""
    decoder = prompt_lookup.Decoder(target(), draft_tokens=tokens, max_ngram=ngram)
    for prompt in PROMPTS:
        first = models.generated(target(), prompt, 1)
        trace = decoder.decode([*prompt, *first], models.wanted(TOKENS - 1))
        pair = (prompt, [*first, *trace.output])
        rounds = simulate.lookup_rounds(pair, tokens, simulate.prompt_lookup(ngram))
        emitted = [trace.first, *(len(one.emitted) for one in trace.rounds)]
        assert [one.accepted + 1 for one in rounds] == emitted


def test_rounds_of_a_small_tree_by_hand() -> None:
    """Guards what each draft forward is fed: the lag of an accepted leaf, and nodes without children not at all."""
    assert simulate.tree_rounds(BRANCHING, [[NONE, 0, 0, NONE, 1, 1, 2, 0, 0]]) == [
        Round(3, 2, (1, 1)),  # to the end of the longer branch, which is a leaf
        Round(3, 1, (2, 1)),  # the shorter branch, a leaf again
        Round(3, 0, (2, 1)),  # nothing: rank 2 is not in the tree
        Round(2, 1, (1,)),  # two tokens are left, so one level
    ]


def test_seconds_by_hand() -> None:
    """Guards against a forward over one node too few, and against a context that never grows."""
    verify = Curve(contexts=[10, 20], tokens=[1, 2, 65], seconds=[[1.0, 1.5, 64.5], [2.0, 2.5, 65.5]])
    draft = Curve(contexts=[10], tokens=[1, 2, 65], seconds=[[0.1, 0.2, 6.5]])
    clock = Clock(CostTable(machine={}, models={}, verify=verify, draft=draft))
    rounds = [Round(1, 1, (2,)), Round(0, 4), Round(0, 0), Round(3, 0, (1, 1))]
    # Contexts 10, 12, 17 and 18: the last two are nearer to 20.
    assert clock.seconds(rounds, 10) == pytest.approx((1.5 + 0.2) + 1.0 + 2.0 + (2.5 + 2 + 0.2))


@pytest.fixture(scope="module")
def pairs(target: Build) -> list[Pair]:
    return [(prompt, models.generated(target(), prompt, 40)) for prompt in PROMPTS]


def found(drafter: DraftModel, pairs: list[Pair], **costs: float) -> dict[tuple[str, str], dict[str, Any]]:
    rows = simulate.simulate(drafter, pairs, models.calibration(**costs))
    return {(row["method"], row["setting"] if row["method"] == "chain" else ""): row for row in rows}


def test_a_perfect_drafter_for_nothing_is_the_oracle(drafter: Drafts, pairs: list[Pair]) -> None:
    """Guards against an oracle that pays for drafting, and against speedups over anything but one step a token."""
    rows = found(drafter("same"), pairs, node=1e-9, level=1e-9)
    assert rows["autoregressive", ""]["tokens_per_round"] == rows["autoregressive", ""]["speedup"] == 1
    assert rows["autoregressive", ""]["tokens_per_second"] == pytest.approx(1, abs=1e-3)
    assert rows["chain", "K8"]["tokens_per_round"] == pytest.approx(39 / 5, abs=1e-3)  # 4 x 9 + 3
    assert rows["chain", "K8"]["speedup"] == pytest.approx(39 / 5, abs=1e-3)
    assert rows["oracle", ""]["tokens_per_round"] == 39
    assert rows["tree", ""]["speedup"] >= rows["chain", "K8"]["speedup"]


def test_costs_decide_what_is_fastest(drafter: Drafts, pairs: list[Pair]) -> None:
    """Guards against a choice by tokens a round: with dear nodes and levels the shortest chain is best, and loses."""
    cheap = found(drafter("related"), pairs, node=0.001, level=0.001)
    dear = found(drafter("related"), pairs, node=0.5, level=0.5)
    assert cheap["chain", "K8"]["speedup"] > cheap["chain", "K1"]["speedup"] > 1
    assert dear["chain", "K8"]["speedup"] < dear["chain", "K1"]["speedup"] < 1
    assert {key: row["tokens_per_round"] for key, row in cheap.items() if key[0] == "chain"} == {
        key: row["tokens_per_round"] for key, row in dear.items() if key[0] == "chain"
    }
    for rows in (cheap, dear):
        others = [row["speedup"] for key, row in rows.items() if key[0] != "tree"]
        assert rows["oracle", ""]["speedup"] >= max(others)


def test_a_drafter_that_is_never_right_gains_nothing(drafter: Drafts, pairs: list[Pair]) -> None:
    """Guards against hits counted for tokens that no choice names."""
    rows = found(drafter("wrong"), pairs)
    assert rows["chain", "K3"]["tokens_per_round"] == 1
    assert rows["chain", "K3"]["speedup"] < 1


def test_errors_name_what_is_missing(target: Build, drafter: Drafts, pairs: list[Pair]) -> None:
    """Guards against rates of hits from a text cut short in silence, and a table for lookup alone."""
    with pytest.raises(UserError, match="it has no draft costs"):
        simulate.simulate(drafter("same"), pairs, models.calibration(drafting=False))
    longer = ([1] * models.CONTEXT, [1, 2, 3])
    assert len(teacher_forced(drafter("same"), *longer)[1]) == 1
    with pytest.raises(UserError, match=r"prompt of 128 \+ continuation of 3 exceed same's context of 128"):
        simulate.ranks(drafter("same"), longer)
    with pytest.raises(UserError, match=r"prompt of 130 \+ continuation of 3 exceed same's context of 128"):
        simulate.ranks(drafter("same"), ([1] * (models.CONTEXT + 2), [1, 2, 3]))


def test_a_tree_is_named_by_its_shape() -> None:
    """Guards the setting that readers see."""
    assert simulate.name(BRANCHING) == "D2_B2_N3"
    assert simulate.name(simulate.chain(3)) == "D3_B1_N3"
    assert torch.tensor(simulate.chain(0)).numel() == 0
