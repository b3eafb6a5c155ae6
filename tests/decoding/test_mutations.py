"""The suite's own test: each classic mistake, put in on purpose, makes a small check fail that passes without it."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from dynatree.decoding import speculative
from dynatree.drafting.model import Draft
from dynatree.engine.backend import Feed, Output
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.ending import Ending
from dynatree.tree import TokenTree
from tests import models
from tests.conftest import Build, Drafts
from tests.decoding.test_exactness import PROMPT, decode, reference

Patch = pytest.MonkeyPatch


def assert_exact(target: LanguageModel, drafter: DraftModel) -> None:
    for seed in range(3):
        prompt = (*PROMPT, seed)
        for method in ("fixed", "threshold"):
            trace = decode(method, target, drafter, prompt, 30)
            assert trace.output == reference(target, prompt, 30)
            assert trace.target_forwards == len(trace.rounds)


def assert_accepts_all(target: LanguageModel, drafter: DraftModel) -> None:
    for seed in range(3):
        for round in decode("fixed", target, drafter, (*PROMPT, seed), 30).rounds:
            assert round.accepted == round.depth


def breadth_first_positions(patch: Patch) -> None:
    patch.setattr(TokenTree, "positions", lambda tree, prefix: torch.arange(prefix, prefix + len(tree)))


def positions_without_the_prefix(patch: Patch) -> None:
    patch.setattr(TokenTree, "positions", lambda tree, prefix: tree.depths)


def siblings_visible(patch: Patch) -> None:
    def mask(tree: TokenTree, prefix: int) -> Tensor:
        return torch.ones(len(tree), prefix + len(tree), dtype=torch.bool).tril(prefix)

    patch.setattr(TokenTree, "attention_mask", mask)


def ancestors_hidden(patch: Patch) -> None:
    def mask(tree: TokenTree, prefix: int) -> Tensor:
        return torch.cat([torch.ones(len(tree), prefix), torch.eye(len(tree))], dim=1).bool()

    patch.setattr(TokenTree, "attention_mask", mask)


def target_cache_cropped_but_not_gathered(patch: Patch) -> None:
    patch.setattr(KeyValueCache, "keep", lambda cache, prefix, kept: cache.crop(prefix + len(kept)))


def values_not_gathered(patch: Patch) -> None:
    real = KeyValueCache.keep

    def keep(cache: KeyValueCache, prefix: int, kept: Tensor) -> None:
        values = [layer.values.clone() for layer in cache.states.layers]
        real(cache, prefix, kept)
        for layer, old in zip(cache.states.layers, values, strict=True):
            layer.values = old

    patch.setattr(KeyValueCache, "keep", keep)


def in_the_target_only(patch: Patch, keep: Callable[[KeyValueCache, int, Tensor], None]) -> None:
    """Let the target's caches, but not the drafter's, keep a path by `keep`."""
    real = LanguageModel.new_caches

    def caches(model: LanguageModel, count: int) -> list[KeyValueCache]:
        made = real(model, count)
        if model.name not in models.DRAFTERS:
            for cache in made:
                cache.keep = partial(keep, cache)  # type: ignore[method-assign]
        return made

    patch.setattr(LanguageModel, "new_caches", caches)


def stale_tail_visible(patch: Patch) -> None:
    def keep(cache: KeyValueCache, prefix: int, kept: Tensor) -> None:
        end = cache.length
        KeyValueCache.keep(cache, prefix, kept)
        cache.crop(min(end, cache.length + 1))

    in_the_target_only(patch, keep)


def bonus_taken_from_the_parent(patch: Patch) -> None:
    def verify(tree: TokenTree, logits: Tensor, *_: Any) -> tuple[Tensor, int]:
        following = logits.float().argmax(-1).tolist()
        kept, _ = tree.accepted_path(following.__getitem__)
        return kept, following[int(kept[-2:][0])]

    patch.setattr(speculative, "verify", verify)


def rejected_parents_ignored(patch: Patch) -> None:
    def path(tree: TokenTree, following: Callable[[int], int], *_: Any) -> tuple[Tensor, int]:
        hit = tree.tokens == torch.tensor([following(parent) for parent in tree.parents.tolist()])
        hit[0] = True
        deepest = int(torch.where(hit, tree.depths, -1).argmax())
        return tree.ancestors[deepest].nonzero().squeeze(1), following(deepest)

    patch.setattr(TokenTree, "accepted_path", path)


def draft_accepted_unseen(patch: Patch) -> None:
    def path(tree: TokenTree, following: Callable[[int], int], *_: Any) -> tuple[Tensor, int]:
        deepest = int(tree.depths.argmax())
        return tree.ancestors[deepest].nonzero().squeeze(1), following(deepest)

    patch.setattr(TokenTree, "accepted_path", path)


def verified_twice(patch: Patch) -> None:
    def keep(cache: KeyValueCache, prefix: int, kept: Tensor) -> None:
        cache.crop(prefix)
        cache.owner.forward(cache.pending[kept], cache)  # type: ignore[attr-defined]

    forward = LanguageModel.forward_batch

    def noting(model: LanguageModel, feeds: Sequence[Feed], *more: Any, **named: Any) -> list[Output]:
        for feed in feeds:
            feed.cache.owner, feed.cache.pending = model, feed.tokens  # type: ignore[attr-defined]
        return forward(model, feeds, *more, **named)

    patch.setattr(LanguageModel, "forward_batch", noting)
    in_the_target_only(patch, keep)


EXACTNESS = [
    breadth_first_positions,
    positions_without_the_prefix,
    siblings_visible,
    ancestors_hidden,
    target_cache_cropped_but_not_gathered,
    values_not_gathered,
    stale_tail_visible,
    bonus_taken_from_the_parent,
    rejected_parents_ignored,
    draft_accepted_unseen,
    verified_twice,
]


def test_the_checks_pass_without_a_mutant(target: Build, drafter: Drafts) -> None:
    """Guards against mutants that are 'caught' by a check which always fails."""
    assert_exact(target(), drafter("related"))
    assert_exact(target(), drafter("same"))
    assert_accepts_all(target(), drafter("same"))


@pytest.mark.parametrize("mutant", EXACTNESS, ids=lambda mutant: mutant.__name__)
def test_a_mistake_in_verification_changes_the_output_or_its_cost(
    target: Build, drafter: Drafts, monkeypatch: Patch, mutant: Callable[[Patch], None]
) -> None:
    """Guards against a suite too tame to notice."""
    reference(target(), PROMPT, 30)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        assert_exact(target(), drafter("related"))


def draft_cache_cropped_but_not_gathered(patch: Patch) -> None:
    def accept(draft: Draft, path: Tensor, _: Tensor) -> None:
        if draft._prefix:
            draft.cache.crop(draft._prefix + len({*draft._forwarded} & {*path.tolist()}))
            draft._prefix = 0

    patch.setattr(Draft, "accept", accept)


def draft_lag_not_fed(patch: Patch) -> None:
    real = Draft.draft_inputs

    def draft_inputs(draft: Draft, tree: TokenTree, frontier: Sequence[int], text: Tensor) -> Feed:
        known = draft.cache.length
        short = text if known == 0 or len(tree) > 1 else torch.cat([text[:known], text[-1:]])
        return real(draft, tree, frontier, short)

    patch.setattr(Draft, "draft_inputs", draft_inputs)


def fed_to_the_drafter(patch: Patch, change: Callable[[Feed], Feed]) -> None:
    """Let the drafter see what `change` makes of each level below the first, its tree spelled out."""
    real = DraftModel.draft_batch

    def draft_batch(model: DraftModel, feeds: Sequence[Feed]) -> list[Output]:
        return real(model, [feed if feed.tree is None else change(feed.spelled_out()) for feed in feeds])

    patch.setattr(DraftModel, "draft_batch", draft_batch)


def draft_positions_breadth_first(patch: Patch) -> None:
    def change(feed: Feed) -> Feed:
        return feed._replace(positions=torch.arange(feed.cache.length, feed.cache.length + len(feed.tokens)))

    fed_to_the_drafter(patch, change)


def draft_siblings_visible(patch: Patch) -> None:
    fed_to_the_drafter(patch, lambda feed: feed._replace(mask=torch.ones_like(feed.mask)))


@pytest.mark.parametrize(
    "mutant",
    [
        draft_cache_cropped_but_not_gathered,
        draft_lag_not_fed,
        draft_positions_breadth_first,
        draft_siblings_visible,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_a_mistake_in_drafting_costs_acceptance_but_never_exactness(
    target: Build, drafter: Drafts, monkeypatch: Patch, mutant: Callable[[Patch], None]
) -> None:
    """Guards the drafter: such a mistake shows in speed alone."""
    mutant(monkeypatch)
    assert_exact(target(), drafter("same"))
    with pytest.raises(AssertionError):
        assert_accepts_all(target(), drafter("same"))


def test_end_token_looked_for_at_the_end_only(target: Build, drafter: Drafts, monkeypatch: Patch) -> None:
    """Guards the tests of EOS: a recorder that looks at the last token misses one inside a path."""
    plain = reference(target(), PROMPT, 16)

    def assert_ends() -> None:
        for eos in dict.fromkeys(plain):
            assert decode("chain", target(), drafter("same"), PROMPT, 16, eos).output[-1] == eos

    assert_ends()

    def after(ending: Ending, tokens: list[int]) -> int | None:
        return len(tokens) if tokens[-1] in ending._ids and tokens[-1] not in tokens[:-1] else None

    monkeypatch.setattr(Ending, "after", after)
    with pytest.raises(AssertionError):
        assert_ends()


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.07], ids=["sharp attention", "near-uniform attention"])
def test_the_probe_at_load_refuses_a_model_that_ignores(
    monkeypatch: Patch, scale: float, dtype: torch.dtype, ignored: str
) -> None:
    """Guards against models or transformers releases that take the argument and drop it."""
    real = LlamaForCausalLM.forward

    @wraps(real)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{**kwargs, ignored: None})

    model = models.random_model(dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1)
    LanguageModel(model)
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(UserError, match="honour a 4-D attention mask and position_ids"):
        LanguageModel(model)
