"""Pieces of text as they are committed: whose they are, where they end, and what an early end leaves behind."""

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dynatree import DynaTree
from dynatree.errors import UserError
from dynatree.generation.prefix_cache import PrefixCache
from dynatree.generation.request import Request
from tests import models
from tests.api.test_dyna_tree import After

PROMPT = [3, 1, 4, 1, 5]
METHODS = ["autoregressive", "linear", "dynatree", "fixed_tree", "transformers", "assisted"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=METHODS)
def tree(request: pytest.FixtureRequest) -> Iterator[DynaTree]:
    """Each method on a pair that agrees now and then."""
    model, helper = models.random_model(), models.random_model(seed=0)
    with torch.no_grad():
        helper.lm_head.weight[7] *= 1.5  # type: ignore[union-attr]
    with DynaTree(model, drafter=helper, method=request.param) as tree:
        yield tree


def test_pieces_tell_what_was_drafted(tree: DynaTree) -> None:
    """Guards the colours of a terminal: as many drafted tokens as rounds accepted, and the text as a whole."""
    whole = tree.generate(PROMPT, max_new_tokens=24)
    stream = tree.stream(PROMPT, max_new_tokens=24)
    pieces = list(stream)
    assert "".join(pieces).split() == [str(token) for token in whole.tokens]
    assert stream.generation.tokens == whole.tokens and stream.generation.seconds > 0
    assert stream.generation.finish_reason == "length"
    drafted = sum(len(piece.split()) for piece in pieces if piece.drafted)
    trace = whole.trace
    # transformers' assistant drafts before the prefill.
    assert drafted == sum(fact.accepted for fact in trace.rounds) + (
        trace.first - 1 if tree.method == "assisted" else 0
    )


def test_a_stream_does_not_outlive_its_model(tree: DynaTree) -> None:
    """Guards tokens of a model that was put back, with its dropout and without the count of its forwards."""
    stream, late = (tree.stream(PROMPT, max_new_tokens=40) for _ in range(2))
    next(stream)
    tree.close()
    for one in (stream, late):
        with pytest.raises(UserError, match="it is closed"):
            list(one)
        assert list(one) == []


def test_a_stream_that_is_closed_ends_there(tree: DynaTree) -> None:
    """Guards against an answer that goes on unseen, a thread that stays, and a record that is lost."""
    whole, threads = tree.generate(PROMPT, max_new_tokens=40).tokens, threading.active_count()
    stream = tree.stream(PROMPT, max_new_tokens=40)
    next(stream), next(stream)
    stream.close()
    found = stream.generation
    assert 0 < len(found.tokens) < 40 and found.tokens == whole[: len(found.tokens)]
    assert found.finish_reason == "stop" and 0 < found.trace.commits[0] <= found.seconds and found.trace.first > 0
    assert list(stream) == [] and threading.active_count() == threads
    assert tree.generate(PROMPT, max_new_tokens=40).tokens == whole


def test_an_error_in_decoding_reaches_who_reads(tree: DynaTree) -> None:
    """Guards against a thread that dies in silence, and its reader waiting for ever."""

    def broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > len(PROMPT) + 3:
            raise RuntimeError("broken")
        return scores

    with pytest.raises(RuntimeError, match="broken"):
        list(tree.stream(PROMPT, max_new_tokens=20, logits_processor=[broken]))
    with pytest.raises(UserError, match="prompt: it is empty"):
        tree.stream([], max_new_tokens=20)
    with pytest.raises(UserError, match=r"prompt: a tensor of shape \[2, 1\]"):
        tree.stream(torch.tensor([[3], [4]]), max_new_tokens=20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_take_turns(dtype: torch.dtype) -> None:
    """Guards a server's threads, whose forwards would write into each other's buffers, by graphs and by torch."""
    prompts = [[*PROMPT, place] for place in range(6)]
    found: dict[int, list[int]] = {}
    with DynaTree(models.random_model(dtype=dtype), drafter=models.random_model(dtype=dtype)) as tree:
        alone = [tree.generate(prompt, max_new_tokens=30).tokens for prompt in prompts]

        def decode(place: int) -> None:
            stream = tree.stream(prompts[place], max_new_tokens=30)
            list(stream)
            found[place] = stream.generation.tokens

        threads = [threading.Thread(target=decode, args=(place,)) for place in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found.get(place) for place in range(len(prompts))] == alone


@pytest.mark.parametrize("method", ["transformers", "assisted"])
def test_generations_by_transformers_take_turns(method: str) -> None:
    """Guards what transformers' own ways set for one generation: the model's configuration, torch's seed, a hook."""
    model, helper = (models.random_model(dtype=torch.float32, seed=seed) for seed in (0, 1))
    model.generation_config.eos_token_id = [*range(0, models.VOCABULARY, 5)]
    sampled = {"do_sample": True, "seed": 7}
    with DynaTree(model, drafter=helper, method=method) as tree:
        alone = tree.generate(PROMPT, max_new_tokens=60, eos_token_id=None, **sampled)
        after = tree.generate(PROMPT, max_new_tokens=60, **sampled)
        assert after.finish_reason == "eos"
        kept = model.generation_config
        stream = tree.stream(PROMPT, max_new_tokens=60, eos_token_id=None, **sampled)
        next(stream)
        assert tree.generate(PROMPT, max_new_tokens=60, **sampled).tokens == after.tokens
        list(stream)
        assert stream.generation.tokens == alone.tokens and model.generation_config is kept
        assert stream.generation.trace.target_forwards == alone.trace.target_forwards


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["transformers", "assisted", "prompt_lookup"])
def test_a_criterion_may_decode_by_the_tree_itself(method: str, dtype: torch.dtype) -> None:
    """Guards a generation from the end of one within it: the graph's forward, the configuration, the end tokens."""
    model, helper = (models.random_model(dtype=dtype, seed=seed) for seed in (0, 1))
    model.generation_config.eos_token_id = [*range(0, models.VOCABULARY, 5)]
    kept, within = model.generation_config, list[list[int]]()
    with DynaTree(model, drafter=helper, method=method) as tree:
        alone, short = tree.generate(PROMPT, 30, eos_token_id=None), tree.generate(PROMPT, 30)

        def asking(*_: Any) -> bool:
            forward = model.forward
            within.append(tree.generate(PROMPT, 30).tokens)
            assert model.forward == forward
            return False

        found = tree.generate(PROMPT, 30, eos_token_id=None, stopping_criteria=[asking])
        assert found.tokens == alone.tokens and model.generation_config is kept
        assert within == [short.tokens] * 30
    assert "forward" not in vars(model)


def test_two_holders_of_a_model_take_turns() -> None:
    """Guards one from what the other has set for its generation: the model is one."""
    model = models.random_model(dtype=torch.float32)
    model.generation_config.eos_token_id = [*range(0, models.VOCABULARY, 5)]
    kept = model.generation_config
    with DynaTree(model, method="transformers") as theirs, DynaTree(model, method="autoregressive") as ours:
        wanted = ours.generate(PROMPT, max_new_tokens=60).tokens
        assert len(wanted) < 60
        for other in (ours, theirs):
            stream = theirs.stream(PROMPT, max_new_tokens=60, eos_token_id=None)
            next(stream)
            assert other.generate(PROMPT, max_new_tokens=60).tokens == wanted
            list(stream)
            assert len(stream.generation.tokens) == 60 and model.generation_config is kept


def test_a_stream_is_there_before_another_generation_has_ended() -> None:
    """Guards who asks for one, such as a server's loop, from waiting for others."""
    entered, go_on = threading.Event(), threading.Event()

    def held(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        entered.set()
        go_on.wait(20)
        return scores

    with DynaTree(models.random_model(), method="transformers") as tree:
        options = {"max_new_tokens": 4, "logits_processor": [held]}
        thread = threading.Thread(target=tree.generate, args=(PROMPT,), kwargs=options)
        thread.start()
        try:
            assert entered.wait(20)
            stream = tree.stream(PROMPT, max_new_tokens=4)
            assert thread.is_alive()
        finally:
            go_on.set()
            thread.join()
        assert len(list(stream)) > 0


@pytest.mark.parametrize("method", ["autoregressive", "linear", "dynatree", "fixed_tree"])
@pytest.mark.parametrize("window", [None, 8])
def test_kept_keys_and_values_change_no_output(method: str, window: int | None) -> None:
    """Guards the cache that turns share: texts that go on, branch off early, repeat, shrink, or have ended midway."""
    generator, trees = torch.Generator().manual_seed(5), []
    for _ in range(2):
        model, helper = models.random_model(), models.random_model()
        helper.config.draft_window = window
        trees.append(DynaTree(model, drafter=helper, method=method))
    fed: list[int] = []
    drafter = trees[0]._loaded.pair.drafter
    if drafter is not None:
        drafter.language_model.model.base_model.register_forward_pre_hook(
            lambda _, __, given: fed.append(given["input_ids"].shape[1]), with_kwargs=True
        )
    with trees[0] as tree, trees[1] as fresh_tree:
        kept, text, said = PrefixCache(), [*PROMPT], 0
        for turn in range(12):
            alone = fresh_tree.generate(text, max_new_tokens=9)
            fresh = alone.tokens
            fed.clear()
            stream = tree.stream(text, max_new_tokens=9, kept=kept)
            if turn % 4 == 3:
                next(stream), stream.close()
                assert stream.generation.tokens == fresh[: len(stream.generation.tokens)]
            else:
                assert [int(token) for token in "".join(stream).split()] == fresh
                # The drafter is the target's twin: whatever its cache holds amiss costs rounds.
                assert window or stream.generation.rounds == alone.rounds
            if turn % 3 == 1:
                # The answer before is in the cache but for its last token, which was never forwarded.
                assert kept.reused == said - 1
                # Neither is the drafter fed the text again: it begins with what was added, and what it lagged behind.
                assert window or not fed or fed[0] < len(text) / 2
            said = len(text) + len(stream.generation.tokens)
            cut = int(torch.randint(1, len(text) + 1, (1,), generator=generator)) if turn % 3 == 2 else len(text)
            added = torch.randint(0, 50, (3,), generator=generator).tolist()
            text = [*text[:cut], *(stream.generation.tokens if turn % 3 == 0 else []), *added]
            if turn == 5:
                tree.generate([[9], [8, 7]], max_new_tokens=3)  # what others decode between two turns


def test_streams_side_by_side_keep_to_their_texts(tree: DynaTree) -> None:
    """Guards against a request that is lost, or goes on with another's state, once another has begun."""
    texts = [PROMPT, [2, 7, 1, 8], PROMPT[::-1]]
    wanted = [tree.generate(text, max_new_tokens=20).tokens for text in texts]
    streams = [tree.stream(text, max_new_tokens=20) for text in texts]
    going = list(streams)
    while going:
        going = [stream for stream in going if next(stream, None) is not None]
        if going:
            assert len(tree.generate([2, 2], max_new_tokens=3).tokens) == 3
    assert [stream.generation.tokens for stream in streams] == wanted
    if tree.method not in ("transformers", "assisted"):
        # transformers' own loops count all forwards of their time.
        forwards = [tree.generate(text, max_new_tokens=20).trace.target_forwards for text in texts]
        assert [stream.generation.trace.target_forwards for stream in streams] == forwards


def test_kept_keys_and_values_are_of_one_stream_at_a_time() -> None:
    """Guards against a stream that goes on with keys and values that a later one has filled."""
    with DynaTree(models.random_model(), method="autoregressive") as tree:
        kept, wanted = PrefixCache(), tree.generate(PROMPT[::-1], max_new_tokens=6).tokens
        first = tree.stream(PROMPT, max_new_tokens=6, kept=kept)
        next(first), next(first)
        second = tree.stream(PROMPT[::-1], max_new_tokens=6, kept=kept)
        next(second)
        with pytest.raises(UserError, match="stream: a later one has taken its keys and values"):
            list(first)
        list(second)
        assert second.generation.tokens == wanted and kept.last is not None and kept.last.follows is None


def test_a_conversation_is_announced_as_any_request_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the graphs of fixed shapes, which are made before a request when they have paid for themselves."""
    begun: list[int] = []
    with DynaTree(models.random_model(dtype=torch.float32), method="autoregressive") as tree:
        backend = tree._target._backend
        begin = backend.begin
        monkeypatch.setattr(backend, "begin", lambda requests: (begun.append(requests), begin(requests)))
        kept = PrefixCache()
        for turns in (1, 2, 3):
            list(tree.stream(PROMPT, max_new_tokens=3, kept=kept))
            assert begun == [1] * turns


def test_a_decoded_request_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards memory between two generations: keys and values of the last one, the target's and the drafter's."""
    made: list[weakref.ref[Request]] = []
    init = Request.__init__

    def noted(self: Request, *given: Any) -> None:
        init(self, *given)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Request, "__init__", noted)
    with DynaTree(models.random_model(), drafter=models.random_model(seed=0), method="linear") as tree:
        tree.generate([PROMPT, [7]], max_new_tokens=8)
        gc.collect()
        assert len(made) == 2 and [one() for one in made] == [None, None]


def test_a_batch_leaves_a_conversation_its_draft() -> None:
    """Guards against a text that the drafter is fed anew, or reads the half of, since others ended meanwhile."""
    with DynaTree(models.random_model(), drafter=models.random_model(seed=0), method="linear") as tree:
        kept, drafts = PrefixCache(), tree._decoder._drafter._drafts  # type: ignore[attr-defined]
        list(tree.stream(PROMPT, max_new_tokens=6, kept=kept))
        assert kept.last in drafts
        # The first ends after four tokens, the other goes on.
        both = tree.generate([PROMPT, [7]], max_new_tokens=20, stopping_criteria=[After(len(PROMPT) + 4)])
        assert [len(one.tokens) for one in both] == [4, 8]
        assert kept.last in drafts


def test_kept_keys_and_values_are_of_one_model() -> None:
    """Guards against a text that goes on from what another model has computed."""
    kept = PrefixCache()
    with DynaTree(models.random_model(), method="autoregressive") as tree:
        list(tree.stream(PROMPT, max_new_tokens=6, kept=kept))
    with DynaTree(models.random_model(seed=1), method="autoregressive") as other:
        with pytest.raises(UserError, match="kept: its keys and values are of another model"):
            list(other.stream(PROMPT, max_new_tokens=6, kept=kept))
        fresh = PrefixCache()
        first, again = ([*map(str, other.stream(PROMPT, max_new_tokens=6, kept=fresh))] for _ in range(2))
        assert first == again and fresh.reused


def test_a_generation_that_failed_leaves_nothing() -> None:
    """Guards against keys and values of a forward that was broken off."""
    model = models.random_model()
    with DynaTree(model, method="autoregressive") as tree:
        kept = PrefixCache()

        def broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if ids.shape[1] > len(PROMPT) + 3:
                raise RuntimeError("broken")
            return scores

        list(tree.stream(PROMPT, max_new_tokens=4, kept=kept))
        assert kept.last is not None
        with pytest.raises(RuntimeError, match="broken"):
            list(tree.stream(PROMPT, max_new_tokens=20, kept=kept, logits_processor=[broken]))
        assert kept.last is None
        assert list(tree.stream(PROMPT, max_new_tokens=4, kept=kept)) and kept.reused == 0
