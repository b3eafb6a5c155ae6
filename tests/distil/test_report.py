"""A drafter's report: agreement with the target's greedy choice, calibration, cost; by texts and continuations."""

import pytest
import torch

from dynatree.distil import report
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from tests import models

TEXTS = {"words": torch.arange(300) * 7 % models.VOCABULARY}
CHOICES = ("top1", "top2", "top3", "top8")


@pytest.fixture(scope="module")
def target() -> LanguageModel:
    return models.language_model(max_position_embeddings=256)


def test_the_target_itself_agrees_everywhere(target: LanguageModel) -> None:
    """Guards against positions that are off by one, in texts and in continuations."""
    found = report.report(target, models.same(target), report.follow(target, TEXTS, 100, 32))
    kinds = ("", ", continuations, first tokens", ", continuations, later tokens")
    assert list(found["agreement"]) == [f"words{kind}" for kind in kinds]
    for values in found["agreement"].values():
        assert [values[choice] for choice in CHOICES] == [1.0] * 4
        assert values["covered"] == 1.0
    assert found["agreement"]["words"]["positions"] == 96
    assert found["cost"]["ratio"] > 0
    assert "words, continuations, first tokens" in report.describe(found)
    assert found["simulated"] == {} and "no simulated speeds" in report.describe(found)


def test_simulated_speeds_are_those_of_the_continuations(target: LanguageModel) -> None:
    """Guards against continuations that are cut at a wrong place: the target itself is right everywhere."""
    calibration = models.calibration(1e-9, 1e-9)
    passages = report.follow(target, TEXTS, 100, 32)
    found = report.report(target, models.same(target), passages, calibration)
    speeds = {(row["method"], row["setting"]): row["tokens_per_round"] for row in found["simulated"]["words"]}
    # 95 tokens behind the first: ten rounds of nine and one of five.
    assert speeds["chain", "K8"] == pytest.approx(95 / 11, abs=1e-3)
    assert "simulated on words" in report.describe(found)


def test_drafters_are_ranked_by_speed_not_by_agreement() -> None:
    """Guards against a drafter that agrees more often but costs more standing first, and a mean of tokens a second."""

    def of(speedup: float, top1: float, plain: float) -> dict:
        methods = {"autoregressive": 1.0, "chain": speedup - 0.1, "tree": speedup, "lookup": 1.5, "oracle": 9.0}
        rows = [{"method": m, "setting": "x", "tokens_per_second": s * plain, "speedup": s} for m, s in methods.items()]
        return {"agreement": {"words": {"top1": top1}}, "cost": {"ratio": 0.1}, "simulated": {"words": rows}}

    lines = report.rank({"agreeing": of(1.2, 0.9, 30), "fast": of(1.4, 0.4, 20)}).splitlines()
    assert [line.split()[0] for line in lines] == ["drafter", "fast", "agreeing", "lookup"]
    assert "tree x" in lines[1] and "1.40x" in lines[1] and "1.50x" in lines[3]


def test_more_choices_agree_more_often(target: LanguageModel) -> None:
    """Guards against ranks that are counted apart, and compares the first with a plain count."""
    drafter = models.related(target)
    text = report.follow(target, TEXTS, 128, 32)["words"].text
    found = report.compare(drafter, target, text, 0, 32)
    shares = [found[choice] for choice in CHOICES]
    assert shares == sorted(shares)
    with torch.inference_mode():
        same = target.model(text.tokens).logits.argmax(-1) == drafter.language_model.model(text.tokens).logits.argmax(
            -1
        )
    assert found["top1"] == pytest.approx(same.float().mean().item(), abs=1e-4)
    assert report.compare(models.wrong(target), target, text, 0, 32)["top1"] == 0


def test_a_draft_vocabulary_bounds_the_agreement(target: LanguageModel) -> None:
    """Guards against measuring choices that are never drafted."""
    vocabulary = torch.arange(0, models.VOCABULARY, 2)
    whole = models.same(target)
    drafter = DraftModel(whole.language_model, vocabulary)
    text = report.follow(target, TEXTS, 128, 32)["words"].text
    found = report.compare(drafter, target, text, 0, 32)
    assert 0 < found["covered"] < 1
    assert found["top1"] == found["top8"] == found["covered"]


def test_reliability_compares_probability_with_agreement() -> None:
    """Guards the calibration error by numbers worked out by hand."""
    bins = report.reliability(torch.tensor([0.12, 0.18, 1.0]), torch.tensor([True, False, True]))
    assert bins == [
        {"probability": 0.15, "agreement": 0.5, "positions": 2},
        {"probability": 1.0, "agreement": 1.0, "positions": 1},
    ]


def test_rows_are_spread_over_the_text_and_short_texts_are_refused() -> None:
    """Guards against measuring the beginning alone."""
    rows = report.spread("words", torch.arange(100), 10, 45)
    assert rows[:, 0].tolist() == [0, 30, 60, 90]
    with pytest.raises(UserError, match="words: 5 tokens; give at least 10"):
        report.spread("words", torch.arange(5), 10, 45)
