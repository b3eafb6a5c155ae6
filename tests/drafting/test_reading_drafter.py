"""A drafter that reads its target's states: against the same modules without any cache, a row after the other."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynatree import decoding
from dynatree.drafting.model import Draft
from dynatree.engine.backend import Feed
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.engine.read_states import ReadStates
from dynatree.errors import UserError
from dynatree.generation.prefix_cache import PrefixCache
from dynatree.tree import TokenTree
from tests import models
from tests.conftest import Build
from tests.models import VOCABULARY
from tests.test_tree import line

ARCHITECTURES = ["llama", "gpt_neox"]
WINDOWS = [None, 6]
TREE = {"policy": "threshold", "depth": 4, "branch": 3, "threshold": None, "budget": 16}
KNOBS: dict[str, dict[str, Any]] = {
    "tree": TREE,
    "all children": {**TREE, "depth": 2, "branch": VOCABULARY, "budget": 100},
    "hybrid": {**TREE, "drafting": "hybrid"},
    "hybrid chain": {"policy": "chain", "drafting": "hybrid", "draft_tokens": 4, "threshold": 0.5},
    "cost aware": {**TREE, "policy": "cost_aware", "drafting": "hybrid", "depth": 24, "budget": 24},
    "none": {**TREE, "depth": 0},
}
PROMPTS = [[3, 1, 4, 1, 5], [7], [9, 8, 7, 6] * 5, [2, 6, 5, 3, 5, 8, 9, 7]]


@torch.no_grad()
def hidden(model: LanguageModel, layers: Sequence[int], **fed: Tensor) -> Tensor:
    """What is behind so many layers [n, reads * width], by transformers' forward without a cache."""
    seen: list[Tensor] = []
    base: Any = model.model.base_model
    norm = base.norm if hasattr(base, "norm") else base.final_layer_norm
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        states = base(**fed, use_cache=False, output_hidden_states=True).hidden_states
    finally:
        hook.remove()
    last = model.model.config.num_hidden_layers
    return torch.cat([seen[0] if layer == last else states[layer] for layer in layers], -1)[0]


def states_of(target: LanguageModel, drafter: DraftModel, text: Sequence[int]) -> Tensor:
    return hidden(target, drafter.reads, input_ids=torch.tensor([[*text]])).float()


@torch.no_grad()
def expected(
    target: LanguageModel, drafter: DraftModel, text: Sequence[int], path: Sequence[int], begin: int
) -> Tensor:
    """Logits [v] behind `text`, which the target computed but for its last token, and the drafted `path`.

    The first row is that of position `begin`.
    """
    fusion, model = drafter._reader, drafter.language_model
    assert fusion is not None
    embed = model.model.get_input_embeddings()
    states = states_of(target, drafter, text[:-1]).to(model.dtype)
    rows = [
        fusion.joined(embed(torch.tensor(text[place])), fusion.fused(states[place - 1]))
        for place in range(begin, len(text))
    ]
    for token in path:
        own = hidden(model, [1], inputs_embeds=torch.stack(rows)[None])[-1]
        rows.append(fusion.joined(embed(torch.tensor(token)), own))
    logits: Tensor = model.model(inputs_embeds=torch.stack(rows)[None], use_cache=False).logits[0, -1]
    return logits


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=20)
@given(data=st.data())
def test_proposals_are_those_of_the_module_over_the_whole_text(
    target: Build, architecture: str, window: int | None, data: st.DataObject
) -> None:
    """Guards rows of other positions, stale rows of a tree, a lag that is fed by halves, and a window's first row."""
    tokens = st.integers(0, VOCABULARY - 1)
    assert_proposals(
        target(architecture),
        models.reading(target(architecture), **({"draft_window": window} if window else {})),
        data.draw(st.lists(tokens, min_size=1, max_size=20)),
        lambda low, high: data.draw(st.integers(low, high)),
    )


def assert_proposals(target: LanguageModel, model: DraftModel, prompt: list[int], chance: Any) -> None:
    """Five rounds of random trees and paths behind `prompt`, some without a draft; `chance`: numbers in a range."""
    draft = Draft(model, *model.new_caches(1))
    draft.begin(states_of(target, model, prompt))
    committed = [*prompt, chance(0, VOCABULARY - 1)]
    for _ in range(5):
        draft.begin_round(committed)
        tree, frontier = TokenTree.root(committed[-1]), [0]
        for _ in range(chance(0, 3)):
            found, steps = models.proposed(draft, model, tree, frontier, 3, committed)
            for row, node in enumerate(frontier):
                path = tree.tokens[line(tree, node)].tolist()
                logits = expected(target, model, committed, path[1:], draft._begin)
                best = torch.log_softmax(logits.float(), -1).topk(3)
                assert found[row] == best.indices.tolist()
                assert torch.allclose(torch.tensor(steps[row]), best.values, atol=1e-4)
            grown = models.grown(tree, frontier, found)
            expanded = {chance(len(tree), len(grown) - 1) for _ in range(2)}
            tree, frontier = grown, sorted(expanded)
        kept = line(tree, chance(0, len(tree) - 1))
        path = [*tree.tokens[kept[1:]].tolist()]
        draft.accept(torch.tensor(kept), states_of(target, model, [*committed, *path])[len(committed) - 1 :])
        committed += [*path, chance(0, VOCABULARY - 1)]
        # Nothing of a tree is kept.
        assert draft._begin + draft.cache.length <= len(committed) - len(kept)


def test_states_of_the_position_beside_are_others(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the test above: it fails where rows get the states of their own positions, or of two before."""
    model, since, prompt = models.reading(target()), ReadStates.since, [*range(1, 9)]
    numbers = torch.Generator().manual_seed(0)

    def chance(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=numbers))

    assert_proposals(target(), model, prompt, chance)
    for shift in (-1, 1):
        monkeypatch.setattr(ReadStates, "since", lambda self, at, by=shift: since(self, at).roll(by, 0))
        with pytest.raises(AssertionError):
            assert_proposals(target(), model, prompt, chance)


# What a drafter was fed below the texts of some rounds: the text, and the feed.
Seen = list[tuple[list[int], Feed]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What drafters are fed for the first level of each tree."""
    found: Seen = []
    real = Draft.draft_inputs

    def noted(draft: Draft, tree: TokenTree, frontier: Sequence[int], text: Tensor) -> Feed:
        feed = real(draft, tree, frontier, text)
        if feed.tree is None:
            found.append((text.tolist(), feed))
        return feed

    monkeypatch.setattr(Draft, "draft_inputs", noted)
    return found


def assert_true(target: LanguageModel, drafter: DraftModel, seen: Seen) -> None:
    """What was fed are the last tokens of each text, with the target's states at the position before each."""
    for text, feed in seen:
        n = len(feed.tokens)
        assert feed.tokens.tolist() == text[-n:] and feed.states is not None
        true = drafter.fused(states_of(target, drafter, text[:-1])[-n:])
        assert torch.allclose(feed.states, true, atol=1e-4, rtol=1e-4)
    seen.clear()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("knobs", KNOBS)
def test_a_drafter_sees_the_states_of_the_text_before_it(
    target: Build, seen: Seen, knobs: str, architecture: str, window: int | None
) -> None:
    """Guards states of other nodes, positions or requests, alone and together, and rounds without a draft."""
    model = target(architecture)
    drafter = models.reading(model, **({"draft_window": window} if window else {}))
    decoder = decoding.build(model, drafter, "speculative", KNOBS[knobs], models.calibration())
    sampled = {"do_sample": True, "temperature": 0.9, "seed": 3}
    ways = (models.wanted(20, **sampled), models.wanted(20), models.wanted(20, repetition_penalty=1.3))
    for options in ways[: 3 if window is None else 1]:
        plain = decoding.build(model, None, "autoregressive", {})
        alone = [decoder.decode(prompt, options) for prompt in PROMPTS[:3]]
        assert [t.output for t in alone] == [plain.decode(prompt, options).output for prompt in PROMPTS[:3]]
        assert bool(seen) == (knobs != "none")
        assert_true(model, drafter, seen)
        assert isinstance(decoder, decoding.BatchDecoder) and isinstance(plain, decoding.BatchDecoder)
        together = decoder.decode_batch(PROMPTS, options)
        assert [t.output for t in together] == [t.output for t in plain.decode_batch(PROMPTS, options)]
        assert bool(seen) == (knobs != "none")
        assert_true(model, drafter, seen)


@pytest.mark.parametrize("window", WINDOWS)
def test_traversal_is_drafted_by_true_states(target: Build, seen: Seen, window: int | None) -> None:
    """Guards the states where a path is not the one that agrees."""
    drafter = models.reading(target(), **({"draft_window": window} if window else {}))
    knobs = {"policy": "fixed", "depth": 3, "branch": 2, "budget": 14}
    decoder = decoding.build(
        target(), drafter, "speculative", {**knobs, "draft_noise": "independent", "verification": "traversal"}
    )
    decoder.decode(PROMPTS[0], models.wanted(24, do_sample=True, temperature=1.0, seed=1))
    assert seen
    assert_true(target(), drafter, seen)


@pytest.mark.parametrize("knobs", ["tree", "hybrid"])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_text_that_goes_on_is_drafted_by_true_states(
    target: Build, seen: Seen, window: int | None, knobs: str
) -> None:
    """Guards conversations: prefixes of any length, streams that are left, and states that nobody has any more."""
    model = target()
    drafter = models.reading(model, **({"draft_window": window} if window else {}))
    decoder: Any = decoding.build(model, drafter, "speculative", KNOBS[knobs])
    kept, text = PrefixCache(), [3, 1, 4, 1, 5]
    for cut, more, rounds in [(5, [], 99), (99, [9, 2], 3), (20, [6], 99), (2, [8, 8], 2), (99, [5], 99), (40, [7], 9)]:
        prompt = [*text[:cut], *more]
        # Some are left before their end.
        *_, trace = islice(decoder.commits(prompt, models.wanted(20), kept), rounds)
        wanted = models.generated(model, prompt, 20)
        assert trace.output == wanted[: len(trace.output)]
        text = [*prompt, *trace.output]
        assert kept.reused > 0 or cut == 5
        assert seen, "nothing was drafted"
        assert_true(model, drafter, seen)
    # Another drafter of the same target held nothing of the text.
    other = models.reading(model)
    again: Any = decoding.build(model, other, "speculative", KNOBS[knobs])
    prompt = [*text, 4]
    *_, trace = again.commits(prompt, models.wanted(12), kept)
    assert kept.reused > 0 and trace.output == models.generated(model, prompt, 12)
    assert seen, "nothing was drafted"
    assert_true(model, other, seen)


def test_states_that_are_held_are_the_last_ones() -> None:
    """Guards memory that grows with the text, and positions that are dropped too soon."""
    text = torch.randn(400, 3)
    for most, first in ((None, 0), (10, 0), (10, 7)):
        held, chance, at = ReadStates(first, most), torch.Generator().manual_seed(0), first
        while held.end < 380:
            count = int(torch.randint(1, 20, (1,), generator=chance))
            held.append(text[held.end : held.end + count])
            at = max(at, held.end - (most or 400))
            assert held.first <= at and torch.equal(held.since(at), text[at : held.end])
            assert most is None or held.end - held.first <= 2 * (most + 20)
            if held.end - held.first > 3 and held.end % 7 == 0:
                held.crop(held.end - 3)
                assert torch.equal(held.since(held.first), text[held.first : held.end])


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"num_hidden_layers": 1}, "draft_reads: 2; llama-0 has layers 1 to 1"),
        ("llama", {"hidden_size": 16}, "reads states of width 32, target llama-0 has 16"),
        ("gpt2", {}, "gpt2-0 .GPT2LMHeadModel.: its layers are not known"),
    ],
)
def test_a_target_that_cannot_be_read_is_refused(
    target: Build, architecture: str, changes: dict[str, int], message: str
) -> None:
    """Guards against states of another layer, or shapes that fail within a forward."""
    drafter = models.reading(target())
    other = models.language_model(architecture, **changes)
    with pytest.raises(UserError, match=message):
        decoding.build(other, drafter, "speculative", TREE)


@pytest.mark.parametrize("reads", [[], [0, 1], [2, 1], [1, 1], 3, ["1"]])
def test_reads_that_are_no_layers_are_refused(target: Build, reads: Any) -> None:
    """Guards a configuration that was written by hand."""
    config = target().model.config
    copy = models.random_model(dtype=torch.float64)
    copy.config.update({"draft_reads": reads})
    with pytest.raises(UserError, match="draft_reads in its config is"):
        DraftModel(LanguageModel(copy), fusion=models.fusion(2, config.hidden_size))


def test_a_reading_drafter_is_no_language_model(target: Build) -> None:
    """Guards against drafts of rows that are no rows, where states are not given."""
    copy = models.random_model()
    copy.config.update({"draft_reads": [1, 2]})
    with pytest.raises(UserError, match="is no language model by itself"):
        DraftModel(LanguageModel(copy))
    with pytest.raises(UserError, match="reads its target's states, which transformers' assisted generation does not"):
        decoding.build(target(), models.reading(target()), "assisted", {"draft_tokens": 3})
