"""Requests decoded together: each row gives what it gives alone, whatever stands beside it."""

import math
from dataclasses import asdict
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynatree import plugins
from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import BatchCosts, Curve
from dynatree.decoding import speculative
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import KeyValueCache, state_bytes
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.growth import PricedGrowth
from dynatree.generation.trace import Trace
from dynatree.measuring.audit import audit
from dynatree.policies import cost_aware
from dynatree.tree import TokenTree
from tests import models
from tests.conftest import Build, Drafts
from tests.decoding.test_exactness import METHODS, TREES, reference

BATCHED = [*TREES, "autoregressive"]
# Ragged, some with a loop for lookup to find, one of a single token; the last two are alike in length.
PROMPTS = [[3, 1, 4, 1, 5], [7], [9, 8, 7, 6] * 5, [2, 6, 5, 3, 5, 8, 9, 7], [2, 7, 1, 8, 2, 8, 1, 8]]


@cache
def decoder(method: str, target: LanguageModel, drafter: DraftModel) -> Any:
    """The method of that name in METHODS on these models."""
    name, knobs = METHODS[method]
    return plugins.load("decoding", name).Decoder(target, drafter, models.calibration(), **knobs)


def facts(trace: Trace) -> dict[str, Any]:
    """A trace without its times."""
    return {key: value for key, value in asdict(trace).items() if key not in ("commits", "seconds", "spans")}


def together(method: str) -> bool:
    """Whether its rows decide together how large their trees are."""
    return METHODS[method][1].get("policy") == "cost_aware"


def assert_rows_are_their_own(
    method: str, target: LanguageModel, drafter: DraftModel, prompts: list[list[int]], count: int, *eos: int
) -> None:
    """Every row's output is `generate`'s; what a row decides by itself is what it decides alone."""
    both = decoder(method, target, drafter)
    options = models.wanted(count, *eos)
    rows = both.decode_batch(prompts, options)
    assert len(rows) == len(prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        assert row.output == reference(target, tuple(prompt), count, *eos)
        if not together(method):
            assert facts(row) == facts(both.decode(prompt, options))


@pytest.mark.parametrize("kind", ["related", "same"])
@pytest.mark.parametrize("method", BATCHED)
def test_each_row_is_what_it_is_alone(target: Build, drafter: Drafts, method: str, kind: str) -> None:
    """Guards the promise itself for every method that decodes batches, on ragged prompts."""
    assert_rows_are_their_own(method, target(), drafter(kind), PROMPTS, 16)


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_each_row_is_what_it_is_alone_in_every_architecture(target: Build, drafter: Drafts, architecture: str) -> None:
    """Guards positions and masks of padded rows where they are made otherwise than in Llama."""
    for method in ("threshold", "autoregressive"):
        assert_rows_are_their_own(method, target(architecture), drafter("related", architecture), PROMPTS, 16)


@settings(max_examples=30)
@given(data=st.data())
def test_random_batches(target: Build, drafter: Drafts, data: st.DataObject) -> None:
    """Guards against what five chosen prompts do not show: other lengths, ends at other times, equal rows."""
    architecture = data.draw(st.sampled_from(list(models.CONFIGS)))
    kind = data.draw(st.sampled_from(list(models.DRAFTERS)))
    method = data.draw(st.sampled_from(BATCHED))
    token = st.integers(0, models.VOCABULARY - 1)
    prompts = data.draw(st.lists(st.lists(token, min_size=1, max_size=40), min_size=1, max_size=4))
    eos = data.draw(st.lists(token, max_size=3))
    count = data.draw(st.integers(1, 24))
    model = target(architecture)
    both = decoder(method, model, drafter(kind, architecture))
    options = models.wanted(count, *eos)
    for prompt, row in zip(prompts, both.decode_batch(prompts, options), strict=True):
        assert row.output == models.generated(model, prompt, count, eos or None)
        if not together(method):
            assert facts(row) == facts(both.decode(prompt, options))


@pytest.mark.parametrize("method", ["fixed", "cost aware", "autoregressive"])
def test_rows_that_finish_at_different_times(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against rows that go on, or vanish, when their neighbours end: at once, in the middle, at the limit."""
    outputs = [reference(target(), tuple(prompt), 24) for prompt in PROMPTS]
    for eos in (outputs[0][0], outputs[2][5], outputs[4][11]):
        expected = [len(reference(target(), tuple(prompt), 24, eos)) for prompt in PROMPTS]
        assert len(set(expected)) > 1
        assert_rows_are_their_own(method, target(), drafter("same"), PROMPTS, 24, eos)


@pytest.mark.parametrize("method", ["chain", "hybrid", "autoregressive"])
def test_one_forward_serves_all_rows(drafter: Drafts, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against rows verified one after another, and against rows that are charged what they took no part in."""
    model, calls = models.language_model(), []
    real = model.model.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(kwargs["input_ids"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(model.model.model, "forward", counted)
    rows = decoder(method, model, drafter("related")).decode_batch(PROMPTS, models.wanted(24))
    assert calls[: len(PROMPTS)] == [1] * len(PROMPTS)
    rounds = calls[len(PROMPTS) :]
    assert len(rounds) == max(row.target_forwards for row in rows)
    assert sum(rounds) == sum(row.target_forwards for row in rows) == sum(len(row.rounds) for row in rows)


def test_one_draft_forward_a_level_serves_all_rows(target: Build) -> None:
    """Guards against drafting row by row: rows of one depth draft together."""
    model = models.same(target())
    rows = decoder("fixed", target(), model).decode_batch(PROMPTS[:1] * 3, models.wanted(24))
    assert [row.draft_forwards for row in rows] == [rows[0].draft_forwards] * 3
    before = model.forwards
    decoder("fixed", target(), model).decode_batch(PROMPTS[:1] * 3, models.wanted(24))
    assert model.forwards - before == rows[0].draft_forwards


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_contexts_are_filled_to_their_last_position(target: Build, drafter: Drafts, architecture: str) -> None:
    """Guards against padding positions beyond the table, and against rows near the limit beside short ones."""
    long = [token % models.VOCABULARY for token in range(models.CONTEXT - 12)]
    for method in ("fixed", "cost aware", "autoregressive"):
        model = target(architecture)
        assert_rows_are_their_own(method, model, drafter("same", architecture), [[5], long, [7, 8]], 12)


def test_a_drafter_with_a_smaller_context(target: Build) -> None:
    """Guards against rows that leave the drafter's context while others still draft."""
    small = DraftModel(models.language_model("gpt2", seed=3, n_positions=20))
    for method in ("chain", "hybrid", "threshold"):
        assert_rows_are_their_own(method, target(), small, [[*range(length)] for length in (3, 18, 20, 30)], 24)


def test_caches_that_grow_while_rows_differ() -> None:
    """Guards against slots lost when the shared tensors are doubled, with rows on both sides of the old capacity."""
    model = models.language_model(max_position_embeddings=700)
    drafter = models.related(model)
    prompts = [[token % models.VOCABULARY for token in range(length)] for length in (250, 5, 262)]
    for method in ("threshold", "autoregressive"):
        assert_rows_are_their_own(method, model, drafter, prompts, 20)


def test_processors_apply_to_each_row_by_its_own_text(target: Build, drafter: Drafts) -> None:
    """Guards against a penalty for what another row said."""
    options = models.wanted(20, repetition_penalty=1.3, no_repeat_ngram_size=3)
    for method in ("hybrid", "autoregressive"):
        both = decoder(method, target(), drafter("related"))
        for prompt, row in zip(PROMPTS, both.decode_batch(PROMPTS, options), strict=True):
            assert facts(row) == facts(both.decode(prompt, options))


def test_float32_is_audited(target: Build, drafter: Drafts) -> None:
    """Guards single precision, where rows of one forward may round otherwise than a row alone: flips are near-ties."""
    model, other = target(dtype=torch.float32), drafter("related", dtype=torch.float32)
    for method in BATCHED:
        for prompt, row in zip(
            PROMPTS, decoder(method, model, other).decode_batch(PROMPTS, models.wanted(24)), strict=True
        ):
            audit(model, prompt, row.output, 1e-3)


def test_commits_are_timed_from_the_batchs_start(target: Build, drafter: Drafts) -> None:
    """Guards the time to a row's first token: it waits for the prompts before it."""
    rows = decoder("chain", target(), drafter("related")).decode_batch(PROMPTS, models.wanted(12))
    firsts = [row.commits[0] for row in rows]
    assert firsts == sorted(firsts) and all(row.commits == sorted(row.commits) for row in rows)
    assert all(row.commits[-1] <= row.seconds for row in rows)


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(target: Build, drafter: Drafts) -> None:
    """Guards against a batch that fails when half of it is decoded."""
    model = target()
    before = model.forwards
    with pytest.raises(UserError, match="prompt: it is empty"):
        decoder("chain", model, drafter("related")).decode_batch([[3], []], models.wanted(4))
    assert model.forwards == before


def test_the_caches_of_finished_rows_are_given_back(target: Build) -> None:
    """Guards against memory that grows with all rows ever begun, and against rows renumbered wrongly."""
    caches = KeyValueCache.rows(3)
    for row, size in zip(caches, (4, 6, 5), strict=True):
        target().forward(torch.arange(size), row)
    held, kept = state_bytes(caches[0].states)[1], caches[2].states.layers[0].keys[2].clone()
    KeyValueCache.retain([caches[0], caches[2]])
    assert [caches[0].length, caches[2].length] == [4, 5]
    assert state_bytes(caches[0].states)[1] == held * 2 // 3
    assert torch.equal(caches[2].states.layers[0].keys[1], kept)


def test_the_cost_aware_policy_counts_with_its_share(target: Build, drafter: Drafts) -> None:
    """Guards against trees chosen as if a row were alone: where a node of a batch is dear, none is verified."""
    costs, steps = models.calibration(node=0.001, level=0.001)
    dear = Curve(contexts=[16], tokens=[1, 2], seconds=[[1, 40]])
    table = costs.model_copy(update={"batches": [BatchCosts(rows=2, verify=dear, draft=costs.draft)]})
    knobs = METHODS["cost aware"][1]
    both = plugins.load("decoding", "speculative").Decoder(
        target(), drafter("same"), Calibration(table, steps), **knobs
    )
    assert any(round.drafted for round in both.decode(PROMPTS[0], models.wanted(24)).rounds)
    for row in both.decode_batch(PROMPTS[:2], models.wanted(24)):
        assert not any(round.drafted for round in row.rounds)


def test_rows_that_leave_levels_out_are_exact(target: Build, drafter: Drafts) -> None:
    """Guards the draft caches of rows that sit out levels that others draft, and the rows' return to drafting."""
    costs, steps = models.calibration(node=0.1, level=0.3)
    batch = BatchCosts(
        rows=5, verify=costs.verify, draft=Curve(contexts=[16], tokens=[1, 2, 64], seconds=[[0.1, 0.12, 0.2]])
    )
    table = costs.model_copy(update={"batches": [batch]})
    knobs = {**METHODS["cost aware"][1], "threshold": None}
    both = speculative.Decoder(target(), drafter("related"), Calibration(table, steps), **knobs)
    rows = both.decode_batch(PROMPTS, models.wanted(48))
    assert [row.output for row in rows] == [reference(target(), tuple(prompt), 48) for prompt in PROMPTS]
    least = min(len(row.rounds) for row in rows)
    drafted = [[row.rounds[number].draft_forwards for row in rows] for number in range(least)]
    assert any(len(set(levels)) > 1 for levels in drafted)
    assert any(0 in levels and any(levels) for levels in drafted)


def test_costs_follow_the_rows_that_are_left(target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against rows that go on paying a share of a batch when they are alone."""
    costs, steps = models.calibration()
    table = costs.model_copy(update={"batches": [BatchCosts(rows=3, verify=costs.verify, draft=costs.draft)]})
    both = speculative.Decoder(target(), drafter("same"), Calibration(table, steps), **METHODS["cost aware"][1])
    seen, real = [], cost_aware._Growth.set_costs

    def noted(self: cost_aware._Growth, calibration: Calibration) -> None:
        seen.append(calibration.costs)
        real(self, calibration)

    monkeypatch.setattr(cost_aware._Growth, "set_costs", noted)
    ends = frozenset([reference(target(), tuple(PROMPTS[0]), 24)[0]])
    outputs = [row.output for row in both.decode_batch(PROMPTS[:3], models.wanted(24, *ends))]
    lengths = sorted(len(output) for output in outputs)
    assert lengths[0] < lengths[1] < lengths[2]
    assert seen == [table.shared(3)] * 3 + [table.shared(2)] * 2 + [table.shared(1)]


def test_a_row_fills_the_width_that_is_paid_for() -> None:
    """Guards against room left empty beside a wider row, and against more nodes than there is room."""
    policy = cost_aware.Policy(depth=8, branch=3, threshold=None, budget=8)
    chosen = policy.start(models.calibration(node=0.4), 20)
    assert isinstance(chosen, PricedGrowth)
    tree = TokenTree.root(0).chain(range(4), [math.log(p) for p in (0.9, 0.3, 0.3, 0.3)])
    assert len(chosen.select(tree)) == 2
    assert [len(chosen.select_within(tree, width)) for width in (0, 1, 3, 8)] == [1, 2, 4, 5]
    saved = chosen.savings(tree, 20)
    assert saved.index(max(saved)) == 1 and len(saved) == 9 and chosen.savings(tree, 2) == saved[:3]
    # What is saved is saved over a forward without nodes: a tree that is a root alone saves nothing.
    assert saved[0] == 0 and chosen.savings(TokenTree.root(0), 2) == pytest.approx([0, -0.4, -0.8])
