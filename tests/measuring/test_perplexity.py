"""Sliding-window perplexity against a naive computation that scores one token at a time."""

import math

import pytest
import torch

from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.measuring import perplexity
from tests import models
from tests.conftest import Build

DOCUMENTS = [
    torch.randint(models.VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (37, 1, 16, 50)
]


def naive(target: LanguageModel, limit: int, window: int, stride: int) -> tuple[float, int]:
    """Each token by a forward of its own, in the first window that holds it."""
    total, count = 0.0, 0
    for ids in DOCUMENTS:
        for place in range(1, len(ids)):
            if count == limit:
                return math.exp(total / count), count
            begin = 0
            while place >= begin + window:
                begin += stride
            logits = target.score(torch.tensor(ids[begin:place]), last=1)[0]
            total -= float(logits.log_softmax(0)[ids[place]])
            count += 1
    return math.exp(total / count), count


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 1), (8, 7), (16, 5), (2, 1), (64, 32)])
@pytest.mark.parametrize("limit", [1000, 45])
def test_equals_scoring_token_by_token(target: Build, limit: int, window: int, stride: int) -> None:
    """Guards against tokens scored twice, left out, or with another context than stated."""
    wanted, count = naive(target(), limit, window, stride)
    found = perplexity.sliding(target(), DOCUMENTS, limit, window, stride)
    assert found["tokens"] == count
    assert found["perplexity"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 3), (8, 7)])
def test_every_token_is_scored_once(target: Build, monkeypatch: pytest.MonkeyPatch, window: int, stride: int) -> None:
    """Guards the counts: all tokens but each document's first."""
    scored = []

    def uniform(tokens: torch.Tensor, last: int) -> torch.Tensor:
        scored.append(last)
        return torch.zeros(last, models.VOCABULARY)

    monkeypatch.setattr(target(), "score", uniform)
    found = perplexity.sliding(target(), DOCUMENTS, 10**6, window, stride)
    assert sum(scored) == found["tokens"] == sum(len(ids) - 1 for ids in DOCUMENTS)
    assert found["perplexity"] == pytest.approx(models.VOCABULARY)


@pytest.mark.parametrize(
    ("window", "stride", "said"),
    [(8, 8, "perplexity_stride: 8; choose 1..7"), (8, 9, "perplexity_stride: 9"), (200, 4, "context admits 129")],
)
def test_windows_that_cannot_be_scored_are_refused(target: Build, window: int, stride: int, said: str) -> None:
    """Guards against tokens that no window holds with context, found out only after minutes."""
    with pytest.raises(UserError, match=said):
        perplexity.sliding(target(), DOCUMENTS, 100, window, stride)


def test_documents_with_nothing_to_score_are_refused(target: Build) -> None:
    """Guards against a division by zero."""
    with pytest.raises(UserError, match="none with two tokens"):
        perplexity.sliding(target(), [[3], []], 100, 8, 4)
