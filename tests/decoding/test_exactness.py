"""Every decoder gives what transformers' greedy `generate` gives; every tree node sees its own path alone."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynatree import plugins
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.logits_processors import greedy_tokens
from dynatree.generation.trace import Trace
from dynatree.tree import TokenTree
from dynatree.verification.agreement import verify
from tests import models
from tests.conftest import Build, Drafts

LIMITS = {"depth": 24, "branch": 3, "threshold": 0.001, "budget": 24}
TREES: dict[str, dict[str, Any]] = {
    "chain": {"policy": "chain", "draft_tokens": 4},
    "fixed": {"policy": "fixed", "depth": 3, "branch": 2, "budget": 10},
    "threshold": {"policy": "threshold", "depth": 4, "branch": 3, "threshold": 0.001, "budget": 12},
    "budget 1": {"policy": "threshold", "depth": 4, "branch": 2, "threshold": None, "budget": 1},
    "budget 0": {"policy": "threshold", "depth": 4, "branch": 2, "threshold": None, "budget": 0},
    "depth 0": {"policy": "threshold", "depth": 0, "branch": 2, "threshold": 0.1, "budget": None},
    "whole vocabulary": {"policy": "threshold", "depth": 2, "branch": 64, "threshold": None, "budget": 70},
    "confidence": {"policy": "confidence", "drafting": "model", "depth": 6, "base_depth": 2, "threshold": 0.0},
    "optimal": {"policy": "optimal", "drafting": "model", "depth": 4, "branch": 3, "budget": 12},
    "lookup": {"policy": "chain", "drafting": "lookup", "draft_tokens": 8},
    "hybrid chain": {"policy": "chain", "drafting": "hybrid", "draft_tokens": 4, "threshold": 0.5},
    "hybrid": {"policy": "threshold", "drafting": "hybrid", "depth": 6, "branch": 3, "threshold": None, "budget": 16},
    "successors": {"policy": "threshold", "drafting": "successors", **LIMITS},
    "priced successors": {"policy": "cost_aware", "drafting": "successors", **LIMITS},
    "cost aware": {"policy": "cost_aware", "drafting": "hybrid", **LIMITS},
    "uncalibrated": {"policy": "cost_aware", "drafting": "model", **LIMITS, "calibrated": False},
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("speculative", knobs) for name, knobs in TREES.items()},
    "autoregressive": ("autoregressive", {}),
    "transformers": ("transformers", {}),
    "prompt_lookup": ("prompt_lookup", {"draft_tokens": 4, "max_ngram": 2}),
    "assisted": ("assisted", {"draft_tokens": 3}),
}
PROMPT = (3, 1, 4, 1, 5)
DTYPES = [torch.float64, torch.float32]

reference = lru_cache(maxsize=None)(models.generated)


def decode(
    method: str, target: LanguageModel, drafter: DraftModel, prompt: tuple[int, ...], count: int, *eos: int
) -> Trace:
    """`count` tokens by the method of that name in METHODS."""
    name, knobs = METHODS[method]
    decoder = plugins.load("decoding", name).Decoder(target, drafter, models.calibration(), **knobs)
    trace: Trace = decoder.decode([*prompt], models.wanted(count, *eos))
    return trace


@pytest.mark.parametrize("architecture", models.CONFIGS)
@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float64) for kind in models.DRAFTERS), ("related", torch.float32)], ids=str
)
def test_output_is_that_of_generate(
    target: Build, drafter: Drafts, architecture: str, dtype: torch.dtype, kind: str
) -> None:
    """Guards the promise itself, for drafters that are right always, often, seldom and never."""
    model = target(architecture, dtype=dtype)
    for method in METHODS:
        trace = decode(method, model, drafter(kind, architecture, dtype), PROMPT, 20)
        assert trace.output == reference(model, PROMPT, 20), method


def test_a_drafter_that_sees_the_end_of_the_text_changes_no_output(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the promise while the window moves, also for requests of a batch, whose windows move apart."""
    helper, prompts = drafter("related"), ([3, 1, 4, 1, 5], [2, 7], [1] * 12)
    monkeypatch.setattr(helper, "window", 5)
    for method, (name, knobs) in METHODS.items():
        decoder = plugins.load("decoding", name).Decoder(target(), helper, models.calibration(), **knobs)
        for prompt in prompts:
            assert decoder.decode(prompt, models.wanted(24)).output == reference(target(), tuple(prompt), 24), method
        if name == "speculative":
            together = decoder.decode_batch([*prompts], models.wanted(24))
            assert [t.output for t in together] == [reference(target(), tuple(p), 24) for p in prompts], method


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_drafter_that_reads_its_target_changes_no_output(
    target: Build, architecture: str, dtype: torch.dtype
) -> None:
    """Guards the promise where the target gives states besides, in trees of all kinds and in batches."""
    model, prompts = target(architecture, dtype=dtype), ([3, 1, 4, 1, 5], [7], [1] * 12)
    for window in ({}, {"draft_window": 5})[: 1 + (architecture == "llama" and dtype == torch.float64)]:
        helper = models.reading(model, **window)
        for name, knobs in TREES.items():
            decoder = plugins.load("decoding", "speculative").Decoder(model, helper, models.calibration(), **knobs)
            wanted = [reference(model, tuple(prompt), 20) for prompt in prompts]
            assert [decoder.decode(prompt, models.wanted(20)).output for prompt in prompts] == wanted, name
            if dtype == torch.float64:  # rows of a batch may round otherwise than a row alone
                together = decoder.decode_batch([*prompts], models.wanted(20))
                assert [trace.output for trace in together] == wanted, name


@pytest.mark.parametrize("method", METHODS)
def test_one_token_in_and_one_out(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against a round after the last wanted token, and against prompts that leave nothing to draft from."""
    for prompt, count in [((7,), 1), ((7,), 2), ((7,), 9), (PROMPT, 1)]:
        output = decode(method, target(), drafter("related"), prompt, count).output
        assert output == reference(target(), prompt, count)


@pytest.mark.parametrize("kind", ["same", "related"])
@pytest.mark.parametrize("method", METHODS)
def test_output_ends_behind_the_first_end_token(target: Build, drafter: Drafts, method: str, kind: str) -> None:
    """Guards against tokens after EOS, wherever it falls: first token, inside an accepted path, or the bonus."""
    plain = reference(target(), PROMPT, 16)
    for eos in dict.fromkeys(plain):
        expected = reference(target(), PROMPT, 16, eos)
        assert expected == plain[: plain.index(eos) + 1]
        trace = decode(method, target(), drafter(kind), PROMPT, 16, eos)
        assert trace.output == expected
        assert sum(len(round.emitted) for round in trace.rounds) + trace.first == len(expected)


def test_end_token_falls_inside_paths_and_on_bonus_tokens(target: Build, drafter: Drafts) -> None:
    """Guards the test above: with a drafter that is always right the two cases do occur."""
    plain = reference(target(), PROMPT, 16)
    last = [decode("chain", target(), drafter("same"), PROMPT, 16, eos).rounds[-1:] for eos in dict.fromkeys(plain)]
    assert {len(round.emitted) > round.accepted for rounds in last for round in rounds} == {True, False}


class Grammar:
    """Behind `begin` tokens even and odd ones by turns, up to `end`; of any other text it knows nothing to say."""

    def __init__(self, begin: int, end: int):
        self._begin, self._end = begin, end

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for text in ids[:, self._begin :].tolist():
            if self._end in text or any(token % 2 != place % 2 for place, token in enumerate(text)):
                raise ValueError(f"{text} is no text")
        other = torch.arange(scores.shape[1]) % 2 != (ids.shape[1] - self._begin) % 2
        return scores.masked_fill(other, -torch.inf)


@pytest.mark.parametrize("method", TREES)
@pytest.mark.parametrize("kind", ["same", "related"])
def test_a_processor_is_asked_of_no_text_that_could_not_be(
    target: Build, drafter: Drafts, method: str, kind: str
) -> None:
    """Guards grammars: of drafted tokens that they forbid, and of what is behind an end token, they know nothing."""
    # Its turns are not the grammar's, so that what is looked up breaks it.
    prompt = [8, 3, 5, 1, 8, 3, 5, 1, 8, 3]

    def outputs(decoder: Any, end: int) -> Trace:
        ends = models.wanted(20, end, logits_processor=(Grammar(len(prompt), end),))
        trace: Trace = decoder.decode(prompt, ends)
        return trace

    plain = plugins.load("decoding", "autoregressive").Decoder(target())
    build = plugins.load("decoding", "speculative").Decoder
    decoder = build(target(), drafter(kind), models.calibration(), **TREES[method])
    whole = outputs(plain, -1).output
    assert [token % 2 for token in whole] == [0, 1] * 10
    for end in dict.fromkeys([-1, *whole]):
        assert outputs(decoder, end).output == outputs(plain, end).output


@pytest.mark.parametrize("method", METHODS)
def test_several_end_tokens_and_one_in_the_prompt(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against only one EOS being honoured, and against one in the prompt ending the output."""
    plain = reference(target(), PROMPT, 16)
    eos = (plain[9], plain[5], PROMPT[0])
    output = decode(method, target(), drafter("same"), PROMPT, 16, *eos).output
    assert output == models.generated(target(), [*PROMPT], 16, list(eos))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "prompt_lookup"])
def test_context_is_filled_to_its_last_position(target: Build, drafter: Drafts, method: str, architecture: str) -> None:
    """Guards against positions beyond the model's table when a tree is deeper than the room left."""
    model = target(architecture)
    prompt = tuple(torch.arange(models.CONTEXT - 12).remainder(models.VOCABULARY).tolist())
    output = decode(method, model, drafter("same", architecture), prompt, 12).output
    assert output == reference(model, prompt, 12)


def test_prompt_lookup_is_refused_where_it_would_look_up_beyond_the_context(target: Build, drafter: Drafts) -> None:
    """Guards against an IndexError from the position table; transformers looks up past the last wanted token."""
    model, prompt = target("gpt2"), (5, 5) * 57
    assert decode("prompt_lookup", model, drafter("same", "gpt2"), prompt, 12).output == reference(model, prompt, 12)
    with pytest.raises(UserError, match="2 drafted beyond"):
        decode("prompt_lookup", model, drafter("same", "gpt2"), prompt, 13)


def test_assisted_is_refused_beyond_its_drafters_context(target: Build) -> None:
    """Guards against an IndexError from the drafter's position table in the middle of a request."""
    small = models.tabled(DraftModel(models.language_model("gpt2", seed=3, n_positions=20)), target())
    assert decode("assisted", target(), small, PROMPT, 15).output == reference(target(), PROMPT, 15)
    with pytest.raises(UserError, match="context of 20"):
        decode("assisted", target(), small, PROMPT, 16)


@pytest.mark.parametrize("tree", TREES)
def test_drafter_with_a_smaller_context(target: Build, tree: str) -> None:
    """Guards against drafting beyond the drafter's positions; decoding goes on plainly where its context ends."""
    small = models.tabled(DraftModel(models.language_model("gpt2", seed=3, n_positions=20)), target())
    for length in (3, 18, 19, 20, 21, 30):
        prompt = tuple(range(length))
        assert decode(tree, target(), small, prompt, 24).output == reference(target(), prompt, 24)


@pytest.mark.parametrize("tree", TREES)
def test_drafter_with_impossible_tokens(target: Build, tree: str) -> None:
    """Guards against log-probabilities of minus infinity, which tie whole levels."""
    drafter = models.masked(target(), kept=2)
    assert decode(tree, target(), drafter, PROMPT, 20).output == reference(target(), PROMPT, 20)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_ties_go_to_the_lowest_token(dtype: torch.dtype) -> None:
    """Guards against argmax in float64, where `generate` rounds to float32 first and then takes the lowest id."""
    logits = torch.tensor([[0.0, 1.0, 1.0 + 1e-12, 1.0]], dtype=dtype)
    assert greedy_tokens(logits).tolist() == [1]


@pytest.mark.parametrize("kind", models.DRAFTERS)
def test_duplicate_rows_of_the_head_tie_as_in_generate(kind: str) -> None:
    """Guards against ties that trees and autoregressive decoding break differently: every token has an equal twin."""
    model = models.with_twin_tokens()
    drafter = models.DRAFTERS[kind](model)
    for method in METHODS:
        assert decode(method, model, drafter, PROMPT, 20).output == reference(model, PROMPT, 20), method


def test_cache_that_grows_while_trees_are_verified() -> None:
    """Guards against slots lost when the preallocation is doubled in the middle of a request."""
    model = models.language_model(max_position_embeddings=700)
    drafter = models.related(model)
    prompt = tuple(torch.arange(250).remainder(models.VOCABULARY).tolist())
    for method in ("threshold", "fixed"):
        assert decode(method, model, drafter, prompt, 20).output == reference(model, prompt, 20)


def next_logits(model: LanguageModel, tokens: tuple[int, ...]) -> torch.Tensor:
    return model.score(torch.tensor(tokens), 1)[0]


def draw_tree(data: st.DataObject, model: LanguageModel, committed: list[int]) -> tuple[TokenTree, list[list[int]]]:
    """A random tree whose nodes often carry the target's own next token, and each node's path from the root."""
    tree, paths = TokenTree.root(committed[-1]), [[committed[-1]]]
    for _ in range(data.draw(st.integers(0, 12))):
        parent = len(tree) - 1 if data.draw(st.booleans()) else data.draw(st.integers(0, len(tree) - 1))
        token = data.draw(st.integers(0, models.VOCABULARY - 1))
        if data.draw(st.integers(0, 3)):
            token = int(next_logits(model, (*committed[:-1], *paths[parent])).float().argmax())
        if [*paths[parent], token] not in paths:
            paths.append([*paths[parent], token])
            tree = tree.extend([parent], [token], [0.0])
    return tree, paths


@pytest.mark.parametrize("architecture", models.CONFIGS)
@settings(max_examples=40)
@given(data=st.data())
def test_random_trees_equal_linear_decoding(target: Build, architecture: str, data: st.DataObject) -> None:
    """Guards every node's logits against its path fed linearly, and the kept cache against a fresh prefill."""
    model = target(architecture)
    committed = data.draw(st.lists(st.integers(0, models.VOCABULARY - 1), min_size=2, max_size=6))
    cache, root_token = KeyValueCache(), committed[-1]
    model.forward(torch.tensor(committed[:-1]), cache)
    for _ in range(3):
        tree, paths = draw_tree(data, model, committed)
        prefix = cache.length
        before = model.forwards
        logits = model.forward(tree.tokens, cache, tree.positions(prefix), tree.attention_mask(prefix))
        assert model.forwards == before + 1
        for node, path in enumerate(paths):
            assert torch.allclose(logits[node], next_logits(model, (*committed[:-1], *path)), atol=1e-9)
        kept, root_token = verify(tree, logits)
        cache.keep(prefix, kept)
        committed += [*tree.tokens[kept[1:]].tolist(), root_token]
        fresh = KeyValueCache()
        model.forward(torch.tensor(committed[:-1]), fresh)
        assert cache.length == fresh.length
        for ours, theirs in zip(cache.states.layers, fresh.states.layers, strict=True):
            for mine, other in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
                assert torch.allclose(mine[:, :, : cache.length], other[:, :, : cache.length], atol=1e-10)


@settings(max_examples=60)
@given(data=st.data())
def test_a_sibling_changes_no_other_nodes_logits(target: Build, data: st.DataObject) -> None:
    """Guards against attention between branches."""
    model, committed = target(), [5, 3, 8]
    tree, paths = draw_tree(data, model, committed)
    parent = data.draw(st.integers(0, len(tree) - 1))
    token = data.draw(st.integers(0, models.VOCABULARY - 1).filter(lambda t: [*paths[parent], t] not in paths))
    larger = tree.extend([parent], [token], [0.0])
    results = []
    for one in (tree, larger):
        cache = KeyValueCache()
        model.forward(torch.tensor(committed[:-1]), cache)
        results.append(model.forward(one.tokens, cache, one.positions(2), one.attention_mask(2)))
    assert torch.allclose(results[0], results[1][:-1], atol=1e-10)


def test_a_drafter_can_range_over_all_tokens(target: Build) -> None:
    """Guards against an ablation that still drafts over the short list, or whose forwards nobody counts."""
    model = target()
    drafter = DraftModel(models.related(model).language_model, torch.arange(10, 20))
    plain = reference(model, PROMPT, 24)
    drafted = {}
    for short in (True, False):
        knobs = {**TREES["threshold"], "draft_vocabulary": short}
        decoder = plugins.load("decoding", "speculative").Decoder(model, drafter, None, **knobs)
        trace = decoder.decode([*PROMPT], models.wanted(24))
        assert trace.output == plain
        assert trace.draft_forwards == sum(r.draft_forwards for r in trace.rounds) > 0
        drafted[short] = {token for r in trace.rounds for token in r.tree["tokens"][1:]}
    assert drafted[True] <= set(range(10, 20))
    assert not drafted[False] <= set(range(10, 20))
    assert drafter.vocabulary is not None
