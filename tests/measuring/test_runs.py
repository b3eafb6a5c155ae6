"""Measured runs: a reference around every prompt, outputs apart from timings, one job at a time."""

import fcntl
import json
import time
from typing import Any

import pytest
import torch

from dynatree import decoding
from dynatree.data.prompts import Prompt
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import clock, pacing, runs
from dynatree.measuring.clock import StepSampler, lock_path
from tests import models
from tests.conftest import Build, Drafts

pytestmark = pytest.mark.usefixtures("own_lock")

SAME = ("output", "rounds", "first", "target_forwards", "draft_forwards")
TREE = {"policy": "threshold", "depth": 3, "branch": 2, "threshold": 0.01, "budget": 8}


def prompt(*ids: int) -> Prompt:
    return Prompt(f"d/{ids[0]}/0", f"{ids[0]}", "d", "title", "evaluation", "document", 0, list(ids))


PROMPTS = [prompt(5, 9, 3), prompt(17, 2, 8)]


def run(target: Build, drafter: Drafts, repeats: int = 1) -> Any:
    decoder = decoding.build(target(), drafter("related"), "speculative", TREE)
    return runs.generate(target(), decoder, PROMPTS, models.wanted(12), repeats)


def locked() -> bool:
    with lock_path().open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_references_are_sampled_around_each_prompt(target: Build, drafter: Drafts) -> None:
    """Guards against normalising by the speed of another moment."""
    _, timings = run(target, drafter, repeats=2)
    assert [(t["prompt_id"], t["repeat"]) for t in timings] == [
        ("d/5/0", 0),
        ("d/17/0", 0),
        ("d/5/0", 1),
        ("d/17/0", 1),
    ]
    assert all(len(timing["references"]) >= 2 and min(timing["references"]) > 0 for timing in timings)


def test_references_have_the_threads_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against steps at a request's ends that take longer than those within it, by which it would look faster."""
    model, step, seen = LanguageModel(models.random_model(), format="int8"), StepSampler._step, list[int]()
    assert model.in_graph, "torch keeps its threads where it computes"
    sampler = StepSampler(model)

    def told(self: StepSampler) -> float:
        seen.append(torch.get_num_threads())
        return step(self)

    monkeypatch.setattr(StepSampler, "_step", told)
    torch.set_num_threads(2)
    runs.timed(decoding.build(model, None, "autoregressive", {}), sampler, [PROMPTS[0].ids], models.wanted(4))
    assert {*seen} == {1} and torch.get_num_threads() == 2


@pytest.mark.parametrize("decoder", ["autoregressive", "speculative", "transformers", "assisted", "prompt_lookup"])
def test_a_clock_that_stops_changes_nothing_but_time(
    target: Build, drafter: Drafts, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against samples that count as a request's forwards, tokens or seconds, or that change what it decodes."""
    built = decoding.build(target(), drafter("related"), decoder, TREE if decoder == "speculative" else {})
    plain = built.decode(PROMPTS[0].ids, models.wanted(12))
    monkeypatch.setattr(pacing, "pause", lambda step: 0.0)
    sample = StepSampler.sample

    def slow(self: StepSampler) -> float:
        time.sleep(0.1)
        return sample(self)

    monkeypatch.setattr(StepSampler, "sample", slow)
    sampler, forwards = StepSampler(target()), target().forwards
    (trace,), clock = runs.timed(built, sampler, [PROMPTS[0].ids], models.wanted(12))
    assert len(clock.samples) == len(trace.commits) + 2
    stopped = 0.1 * (len(clock.samples) - 2)
    assert trace.seconds < plain.seconds + stopped / 2
    assert [getattr(trace, name) for name in SAME] == [getattr(plain, name) for name in SAME]
    assert target().forwards - forwards == trace.target_forwards + 1


def test_outputs_are_deterministic_and_apart_from_timings(target: Build, drafter: Drafts) -> None:
    """Guards against seconds in the file that is compared by content, and against state left by an earlier request."""
    outputs, timings = run(target, drafter, repeats=2)
    again, _ = run(target, drafter, repeats=2)
    assert json.dumps(outputs) == json.dumps(again)
    assert {**outputs[0], "repeat": 1} == outputs[2]
    for output, timing in zip(outputs, timings, strict=True):
        assert (output["prompt_id"], output["repeat"]) == (timing["prompt_id"], timing["repeat"])
        assert not {"seconds", "commits"} & set(output)
        assert len(timing["commits"]) == len(output["rounds"]) + 1
        assert timing["commits"] == sorted(timing["commits"])
        assert timing["commits"][-1] <= timing["seconds"]


def test_records_say_what_was_decoded(target: Build, drafter: Drafts) -> None:
    """Guards the record: greedy output, the prompt's document, and forwards without those of warm-up and reference."""
    outputs, _ = run(target, drafter)
    for output, given in zip(outputs, PROMPTS, strict=True):
        assert output["output_ids"] == models.generated(target(), given.ids, 12)
        assert (output["document_id"], output["prompt_tokens"], output["first"]) == (given.document_id, 3, 1)
        assert output["target_forwards"] == len(output["rounds"])


def test_end_of_sequence_does_not_end_a_measured_run(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against methods compared over different lengths."""
    plain = models.generated(target(), PROMPTS[0].ids, 12)
    monkeypatch.setattr(target().model.generation_config, "eos_token_id", plain[3])
    decoder = decoding.build(target(), None, "autoregressive", {})
    outputs, _ = runs.generate(target(), decoder, PROMPTS[:1], models.wanted(12))
    assert outputs[0]["output_ids"] == plain


def test_an_output_that_ended_early_is_no_record(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a decoder that loses tokens, whose outputs no other is compared with."""
    decoder = decoding.build(target(), None, "autoregressive", {})
    decode = type(decoder).decode

    def short(self: Any, prompt: Any, options: GenerationOptions, *further: Any, **more: Any) -> Any:
        return decode(self, prompt, options.model_copy(update={"max_new_tokens": 11}), *further, **more)

    monkeypatch.setattr(type(decoder), "decode", short)
    with pytest.raises(RuntimeError, match="d/5/0: 11 tokens came, and 12 were asked for"):
        runs.generate(target(), decoder, PROMPTS, models.wanted(12))
    outputs, _ = runs.generate(
        target(), decoder, PROMPTS, models.wanted(12).model_copy(update={"eos_token_id": frozenset([3])})
    )
    assert len(outputs) == len(PROMPTS)


def test_the_lock_is_held_while_measuring_and_released_after(target: Build) -> None:
    """Guards against timed jobs that slow each other down, and against a lock that an error leaves behind."""
    seen = []

    class Decoder:
        def decode(self, ids: list[int], options: GenerationOptions, **_: Any) -> None:
            seen.append(locked())
            raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        runs.generate(target(), Decoder(), PROMPTS, models.wanted(12))
    assert seen == [True]
    assert not locked()


def test_a_sample_always_steps_at_the_same_context(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against samples that grow slower with every step."""
    model, lengths = target(), set()
    real = model.forward

    def forward(tokens: Any, cache: Any, **options: Any) -> Any:
        if len(tokens) == 1:
            lengths.add(cache.length)
        return real(tokens, cache, **options)

    monkeypatch.setattr(model, "forward", forward)
    sampler = StepSampler(model)
    assert min(sampler.sample() for _ in range(3)) > 0
    assert lengths == {clock.CONTEXT}


def test_timed_runs_record_no_spans(target: Build, drafter: Drafts) -> None:
    """Guards against instrumenting what is timed."""
    decoder = decoding.build(target(), drafter("related"), "speculative", TREE)
    assert decoder.decode(PROMPTS[0].ids, models.wanted(12)).spans == []


def test_an_unknown_decoder_lists_the_choices(target: Build) -> None:
    """Guards against an import error in place of an answer."""
    with pytest.raises(UserError, match="decoding: no 'magic'; choose one of assisted, autoregressive"):
        decoding.build(target(), None, "magic", {})


def test_a_batch_is_timed_as_one_and_recorded_by_prompt(target: Build, drafter: Drafts) -> None:
    """Guards throughput: tokens of all rows over the group's seconds, once; outputs as of single prompts."""
    prompts = [*PROMPTS, prompt(40, 41, 42, 43)]
    decoder = decoding.build(target(), drafter("related"), "speculative", TREE)
    outputs, timings = runs.generate(target(), decoder, prompts, models.wanted(12), batch=2)
    alone, single = runs.generate(target(), decoder, prompts, models.wanted(12))
    assert outputs == alone
    assert [t["prompt_id"] for t in timings] == [p.prompt_id for p in prompts]
    assert [(t["batch"], t["batch_tokens"]) for t in timings] == [(2, 24), (2, 24), (1, 12)]
    assert {(t["batch"], t["batch_tokens"]) for t in single} == {(1, 12)}
    first, second, last = timings
    assert [first[key] for key in ("seconds", "references")] == [second[key] for key in ("seconds", "references")]
    assert last["references"] != first["references"]
    assert all(t["commits"][-1] <= t["seconds"] for t in timings) and first["commits"] != second["commits"]


def test_a_method_without_batches_refuses_them(target: Build) -> None:
    """Guards against prompts decoded one after another and told as a batch."""
    decoder = decoding.build(target(), None, "transformers", {})
    with pytest.raises(UserError, match="batch: 2; transformers decodes one prompt at a time, batches are for auto"):
        runs.generate(target(), decoder, PROMPTS, models.wanted(4), batch=2)


def test_a_drafter_that_is_needed_and_not_given_is_said(target: Build) -> None:
    """Guards against an AttributeError deep in the first round."""
    with pytest.raises(UserError, match="decoder speculative with these parameters needs a drafter"):
        decoding.build(target(), None, "speculative", TREE)
    assert decoding.build(target(), None, "speculative", {**TREE, "drafting": "hybrid"})
