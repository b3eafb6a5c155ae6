"""A drafter's report: agreement with the target's greedy choice, calibration, cost; by texts and continuations."""

import pytest
import torch

from dynatree import drafter_report
from dynatree.errors import UserError
from dynatree.model import LanguageModel
from tests import models

TEXTS = {"words": torch.arange(300) * 7 % models.VOCABULARY}
CHOICES = ("top1", "top2", "top3", "top8")


@pytest.fixture(scope="module")
def target() -> LanguageModel:
    return models.language_model(max_position_embeddings=256)


def test_the_target_itself_agrees_everywhere(target: LanguageModel) -> None:
    """Guards against positions that are off by one, in texts and in continuations."""
    found = drafter_report.report(target, models.same(target), TEXTS, tokens=100, length=32)
    kinds = ("", ", continuations, first tokens", ", continuations, later tokens")
    assert list(found["agreement"]) == [f"words{kind}" for kind in kinds]
    for values in found["agreement"].values():
        assert [values[choice] for choice in CHOICES] == [1.0] * 4
        assert values["covered"] == 1.0
    assert found["agreement"]["words"]["positions"] == 96
    assert found["cost"]["ratio"] > 0
    assert "words, continuations, first tokens" in drafter_report.describe(found)


def test_more_choices_agree_more_often(target: LanguageModel) -> None:
    """Guards against ranks that are counted apart, and compares the first with a plain count."""
    drafter = models.related(target)
    rows = drafter_report.spread("words", TEXTS["words"], 32, 128)
    found = drafter_report.compare(target, drafter, rows, 0)
    shares = [found[choice] for choice in CHOICES]
    assert shares == sorted(shares)
    with torch.inference_mode():
        same = target.model(rows).logits.argmax(-1) == drafter.model(rows).logits.argmax(-1)
    assert found["top1"] == pytest.approx(same.float().mean().item(), abs=1e-4)
    assert drafter_report.compare(target, models.wrong(target), rows, 0)["top1"] == 0


def test_a_draft_vocabulary_bounds_the_agreement(target: LanguageModel) -> None:
    """Guards against measuring choices that are never drafted."""
    vocabulary = torch.arange(0, models.VOCABULARY, 2)
    whole = models.same(target)
    drafter = LanguageModel(whole.model, name="half", draft_vocabulary=vocabulary)
    rows = drafter_report.spread("words", TEXTS["words"], 32, 128)
    found = drafter_report.compare(target, drafter, rows, 0)
    assert 0 < found["covered"] < 1
    assert found["top1"] == found["top8"] == found["covered"]


def test_reliability_compares_probability_with_agreement() -> None:
    """Guards the calibration error by numbers worked out by hand."""
    bins = drafter_report.reliability(torch.tensor([0.12, 0.18, 1.0]), torch.tensor([True, False, True]))
    assert bins == [
        {"probability": 0.15, "agreement": 0.5, "positions": 2},
        {"probability": 1.0, "agreement": 1.0, "positions": 1},
    ]


def test_rows_are_spread_over_the_text_and_short_texts_are_refused() -> None:
    """Guards against measuring the beginning alone."""
    rows = drafter_report.spread("words", torch.arange(100), 10, 45)
    assert rows[:, 0].tolist() == [0, 30, 60, 90]
    with pytest.raises(UserError, match="words: 5 tokens; give at least 10"):
        drafter_report.spread("words", torch.arange(5), 10, 45)
