"""What a decoder says it did agrees with what it did, and one request leaves nothing to the next."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dynatree import plugins
from dynatree.engine.backend import Output
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.trace import Clock, Trace
from tests import models
from tests.conftest import Build, Drafts
from tests.decoding.test_exactness import METHODS, PROMPT, TREES, decode, reference

OURS = [*TREES, "autoregressive"]


def facts(trace: Trace) -> Trace:
    """A trace without its times."""
    return replace(trace, commits=[], seconds=0.0, spans=[])


@pytest.mark.parametrize("kind", models.DRAFTERS)
@pytest.mark.parametrize("method", METHODS)
def test_counts_agree_with_each_other(target: Build, drafter: Drafts, method: str, kind: str) -> None:
    """Guards against acceptance above 1 and against emitted tokens that no round accounts for."""
    trace = decode(method, target(), drafter(kind), PROMPT, 20)
    assert len(trace.commits) == len(trace.rounds) + 1
    assert trace.first + sum(len(round.emitted) for round in trace.rounds) == len(trace.output) == 20
    assert trace.target_forwards == len(trace.rounds)
    for round in trace.rounds:
        assert 0 <= round.accepted <= round.depth <= round.drafted
        assert len(round.emitted) == round.accepted + 1
    if method in OURS:
        assert sum(round.draft_forwards or 0 for round in trace.rounds) == trace.draft_forwards


@pytest.mark.parametrize("kind", models.DRAFTERS)
@pytest.mark.parametrize("method", TREES)
def test_rounds_tell_the_verified_tree(target: Build, drafter: Drafts, method: str, kind: str) -> None:
    """Guards against records of the drafted instead of the verified tree, and against equal siblings."""
    for round in decode(method, target(), drafter(kind), PROMPT, 20).rounds:
        tree, path = round.tree, round.path
        assert tree is not None
        assert path is not None
        assert len(tree["tokens"]) == round.drafted + 1
        assert len(set(zip(tree["parents"], tree["tokens"], strict=True))) == round.drafted + 1
        assert [tree["tokens"][node] for node in path[1:]] == round.emitted[:-1]
        assert [tree["parents"][node] for node in path] == [-1, *path[:-1]]


@pytest.mark.parametrize("method", METHODS)
def test_forwards_are_counted_at_the_model_call(
    target: Build, drafter: Drafts, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a second target forward in a round that no counter sees."""
    calls = []
    model = models.language_model()
    real = model.model.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(model.model.model, "forward", counted)
    trace = decode(method, model, drafter("related"), PROMPT, 20)
    assert len(calls) == trace.target_forwards + 1


@pytest.mark.parametrize("method", ["chain", "fixed"])
def test_a_drafter_that_is_always_right_is_always_accepted(target: Build, drafter: Drafts, method: str) -> None:
    """Guards the draft cache: a wrong slot or position costs acceptance, never exactness, so nothing else shows it."""
    for round in decode(method, target(), drafter("same"), PROMPT, 30).rounds:
        assert round.accepted == round.depth


@pytest.mark.parametrize("method", ["chain", "fixed", "threshold", "budget 1", "assisted"])
def test_a_drafter_that_is_never_right_is_never_accepted(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against accepting what the target did not choose."""
    assert not any(round.accepted for round in decode(method, target(), drafter("wrong"), PROMPT, 20).rounds)


@pytest.mark.parametrize("method", METHODS)
def test_one_request_leaves_nothing_to_the_next(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against caches, schedules and counters that outlive a request; also: two runs give equal traces."""
    name, knobs = METHODS[method]
    decoder = plugins.load("decoding", name).Decoder(target(), drafter("related"), models.calibration(), **knobs)
    first = decoder.decode([*PROMPT], models.wanted(20))
    end = first.output[6]
    assert decoder.decode([9, 8, 7], models.wanted(11, end)).output == reference(target(), (9, 8, 7), 11, end)
    assert facts(decoder.decode([*PROMPT], models.wanted(20))) == facts(first)
    assert facts(decode(method, target(), drafter("related"), PROMPT, 20)) == facts(first)


def test_assisted_schedule_starts_anew(target: Build, drafter: Drafts) -> None:
    """Guards against the number of drafted tokens that transformers' heuristic carries from call to call."""
    options = {"draft_tokens": 3, "schedule": "heuristic", "confidence": 0.0}
    decoder = plugins.load("decoding", "assisted").Decoder(target(), drafter("same"), None, **options)
    both = [target().model, drafter("same").language_model.model]
    configurations = [model.generation_config for model in both]
    first = decoder.decode([*PROMPT], models.wanted(30))
    assert max(round.drafted for round in first.rounds) > 3
    assert facts(decoder.decode([*PROMPT], models.wanted(30))) == facts(first)
    assert [model.generation_config for model in both] == configurations


def test_baselines_ignore_the_models_own_generation_settings(drafter: Drafts) -> None:
    """Guards against a repetition penalty or sampling that a checkpoint asks for slipping into a baseline."""
    model = models.language_model()
    expected = models.generated(model, [*PROMPT], 20)
    model.model.generation_config.update(repetition_penalty=3.0, do_sample=True, temperature=5.0, max_length=7)
    for method in METHODS:
        assert decode(method, model, drafter("related"), PROMPT, 20).output == expected, method


@pytest.mark.parametrize("method", METHODS)
def test_commits_are_told_as_they_happen(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against streams that differ from the output or are told after the fact."""
    name, knobs = METHODS[method]
    told: list[tuple[list[int], int]] = []
    clock = Clock(instrumented=True)
    decoder = plugins.load("decoding", name).Decoder(target(), drafter("same"), models.calibration(), **knobs)
    trace = decoder.decode([*PROMPT], models.wanted(20), lambda *commit: told.append(commit), clock)
    assert [token for tokens, _ in told for token in tokens] == trace.output
    assert [(round.emitted, round.accepted) for round in trace.rounds] == told[1:]
    assert trace.commits == sorted(trace.commits)
    assert trace.commits[-1] <= trace.seconds
    assert all(begin <= end for _, _, begin, end in trace.spans)


def test_accepted_end_token_counts_as_accepted(target: Build, drafter: Drafts) -> None:
    """Guards against more accepted than emitted tokens where EOS cuts a path short."""
    model: LanguageModel = target()
    for eos in dict.fromkeys(reference(model, PROMPT, 16)):
        for round in decode("chain", model, drafter("same"), PROMPT, 16, eos).rounds:
            assert len(round.emitted) - 1 <= round.accepted <= len(round.emitted)


@pytest.mark.parametrize("method", METHODS)
def test_a_criterion_that_is_true_at_its_own_token_alone_ends_the_output(
    target: Build, drafter: Drafts, method: str
) -> None:
    """Guards against decoding on where a criterion stopped within a commit, and against asking it twice a token."""
    name, knobs = METHODS[method]
    decoder = plugins.load("decoding", name).Decoder(target(), drafter("same"), models.calibration(), **knobs)
    prompt = [*PROMPT] * 3
    whole = decoder.decode(prompt, models.wanted(20)).output
    for token in dict.fromkeys(whole):
        asked = list[int]()

        def stop(ids: torch.Tensor, _: Any, token: int = token, asked: list[int] = asked) -> bool:
            asked.append(ids.shape[1])
            return bool(ids[0, -1] == token)

        trace = decoder.decode(prompt, models.wanted(20, stopping_criteria=(stop,)))
        assert (trace.output, trace.finish_reason) == (whole[: whole.index(token) + 1], "stop")
        assert asked == [len(prompt) + 1 + place for place in range(len(trace.output))]
        assert trace.target_forwards == len(trace.rounds)


def test_what_transformers_looks_up_beyond_the_end_is_not_counted(target: Build) -> None:
    """Guards against an acceptance that compares what was cut with what was not: our trees end with the output."""
    trace = (
        plugins.load("decoding", "prompt_lookup")
        .Decoder(target(), draft_tokens=8)
        .decode([*PROMPT] * 3, models.wanted(12))
    )
    left = 12 - trace.first
    for round in trace.rounds:
        assert round.drafted <= left - 1
        left -= len(round.emitted)


def test_a_target_without_numbers_is_refused(target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against the token that argmax finds among NaN: a drafted node that overflows leaves them at the root."""
    model = target()
    forward = model.forward_batch

    def overflowing(feeds: Any, **more: Any) -> Any:
        return [Output(row.logits * torch.nan) if len(row.logits) > 1 else row for row in forward(feeds, **more)]

    monkeypatch.setattr(model, "forward_batch", overflowing)
    decoder = plugins.load("decoding", "speculative").Decoder(model, drafter("related"), policy="chain", draft_tokens=2)
    with pytest.raises(UserError, match="the target's logits are not numbers"):
        decoder.decode([*PROMPT], models.wanted(12))
