"""The audit: what counts as exact, as a legal flip, and as repetition."""

import math

import pytest
import torch

from dynatree.data.prompts import Prompt
from dynatree.data.splits import SplitDocument
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import audit
from tests import models
from tests.conftest import Build

PROMPT = [5, 9, 3, 17]


def test_greedy_output_passes_without_a_flip(target: Build) -> None:
    """Guards against an audit that is off by one position."""
    model = target()
    output = models.generated(model, PROMPT, 12)
    facts = audit.audit(model, PROMPT, output, 1e-8)
    assert (facts["flips"], facts["first_flip"], facts["largest_gap"]) == (0, None, 0.0)
    logits = model.score(torch.tensor([*PROMPT, *output]), last=len(PROMPT) + len(output))
    losses = [-float(logits[len(PROMPT) - 1 + i].log_softmax(0)[token]) for i, token in enumerate(output)]
    assert facts["negative_log_likelihood"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert facts["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_wrong_token_fails_wherever_it_stands(target: Build, place: int) -> None:
    """Guards against errors at the first or last emitted token going unseen; the tokens after it follow from it."""
    model = target()
    output = models.generated(model, PROMPT, 12)[:place]
    output.append((models.generated(model, [*PROMPT, *output], 1)[0] + 1) % models.VOCABULARY)
    if place < 11:
        output += models.generated(model, [*PROMPT, *output], 11 - place)
    with pytest.raises(UserError, match=rf"output token {place} \({output[place]}\) lies"):
        audit.audit(model, PROMPT, output, 1e-3)


def test_a_near_tie_counts_as_a_flip_and_passes() -> None:
    """Guards against failing a run for what rounding explains: with twin tokens either one is right."""
    model = models.with_twin_tokens()
    output = models.generated(model, PROMPT, 1)
    assert output[0] % 2 == 0  # ties go to the lowest id
    facts = audit.audit(model, PROMPT, [output[0] + 1], 1e-8)
    assert (facts["flips"], facts["first_flip"], facts["largest_gap"]) == (1, 0, 0.0)


def test_logits_that_are_no_numbers_fail(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a comparison with NaN that lets everything pass."""
    model = target()
    monkeypatch.setattr(model, "score", lambda tokens, last: torch.full((last, models.VOCABULARY), math.nan))
    with pytest.raises(UserError, match="logits are not numbers"):
        audit.audit(model, PROMPT, [1, 2], 1e-3)


def test_what_was_audited_is_not_computed_again(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the minutes that equal outputs of several methods would take, and facts of another text, or by another
    tolerance, in place of one's own."""
    model, seen = target(), []
    score = model.score
    monkeypatch.setattr(model, "score", lambda tokens, last: seen.append(last) or score(tokens, last))
    one, other = ([*models.generated(model, PROMPT, 9), token] for token in (1, 2))
    drawn = {"options": GenerationOptions(max_new_tokens=10, do_sample=True), "comparable": False}
    asked = [(one, 100.0, {}), (other, 100.0, {}), (one, 200.0, {}), (one, 100.0, drawn)]
    first, again = ([audit.audit(model, PROMPT, output, eps, **more) for output, eps, more in asked] for _ in range(2))
    assert first == again and seen == [10] * len(asked)
    assert [facts["tolerance"] for facts in first] == [100.0, 100.0, 200.0, 100.0]
    assert first[0]["perplexity"] != first[1]["perplexity"] and first[3]["flips"] is None
    again[0]["flips"] = "changed"
    assert audit.audit(model, PROMPT, one, 100.0) == first[0]


def document(split: str, ids: list[int]) -> SplitDocument:
    return SplitDocument(f"{split}-{len(ids)}", "title", split, "document", ids)


def test_tolerance_is_fixed_for_full_precision_and_measured_for_half(target: Build) -> None:
    """Guards against a typed-in tolerance where kernels differ by more, or none."""
    assert audit.tolerance(target(), []) == 1e-8
    assert audit.tolerance(target(dtype=torch.float32), []) == 1e-3
    half = target(dtype=torch.bfloat16)
    text = models.generated(half, PROMPT, 40)
    measured = audit.tolerance(half, [document("tuning", text)])
    forwards = half.forwards
    # The next run of the same model in the same process is audited by what is known.
    assert audit.tolerance(half, [document("tuning", text)]) == measured and half.forwards == forwards
    assert 0 < measured < 1
    assert audit.tolerance(half, [document("tuning", text), document("tuning", PROMPT)]) >= measured
    assert audit.audit(half, PROMPT, text, measured)["tolerance"] == measured


def test_tolerance_is_measured_on_the_tuning_split_alone(target: Build) -> None:
    """Guards against outputs that are judged by what their own prompts tolerate."""
    half = target(dtype=torch.bfloat16)
    tuning, evaluation = document("tuning", PROMPT), document("evaluation", models.generated(half, PROMPT, 40))
    assert audit.tolerance(half, [evaluation, tuning]) == audit.tolerance(half, [tuning])
    with pytest.raises(UserError, match="none of 1 documents is of the tuning split"):
        audit.tolerance(half, [evaluation])


def test_records_follow_the_outputs_and_name_the_prompt_that_fails(target: Build) -> None:
    """Guards against facts beside the wrong output, and against an error that leaves the reader to search."""
    model = target()
    prompts = [Prompt(f"d/{first}", "d", "d", "title", "evaluation", "document", 0, [first, 9, 3]) for first in (5, 17)]
    outputs = [
        {"prompt_id": p.prompt_id, "repeat": repeat, "output_ids": models.generated(model, p.ids, 6)}
        for repeat in range(2)
        for p in reversed(prompts)
    ]
    rows = audit.records(model, prompts, outputs, 1e-8)
    assert [(row["prompt_id"], row["repeat"]) for row in rows] == [("d/17", 0), ("d/5", 0), ("d/17", 1), ("d/5", 1)]
    assert rows[0] == {**rows[2], "repeat": 0}
    assert rows[0]["perplexity"] != rows[1]["perplexity"]
    outputs[1]["output_ids"] = outputs[1]["output_ids"][::-1]
    with pytest.raises(UserError, match=r"d/5: not exact: output token"):
        audit.records(model, prompts, outputs, 1e-8)


def test_repetition_by_its_definition() -> None:
    """Guards the flags: grams end at an output token, and their first occurrence may lie in the prompt."""
    assert audit.repeated([1, 2, 3], [1, 2, 3], order=2) == [0, 1, 1]
    assert audit.repeated([1, 2], [3, 4, 5], order=2) == [0, 0, 0]
    assert audit.repeated([], [7] * 5, order=2) == [0, 0, 1, 1, 1]  # overlapping grams count
    assert audit.repeated([1, 2, 1, 2], [9, 8], order=2) == [0, 0]  # a loop of the prompt alone does not
    assert audit.repeated([4], [4, 4], order=3) == [0, 0]  # what is shorter than a gram is none


@pytest.mark.parametrize("seed", range(5))
def test_repetition_equals_a_naive_search(seed: int) -> None:
    """Guards the linear algorithm against the quadratic reading of the definition."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, (60,), generator=generator).tolist()
    prompt, output = text[:20], text[20:]
    naive = []
    for end in range(21, 61):
        gram = text[end - 4 : end]
        naive.append(any(text[start : start + 4] == gram for start in range(end - 4)))
    assert audit.repeated(prompt, output, order=4) == naive
