"""Training text: tuning documents alone, some held out, data sets by weight; the draft vocabulary by frequency."""

import pytest
import torch

from dynatree.distil.text import collect, cut, repeat_span, vocabulary_order
from dynatree.errors import UserError
from tests.distil.worlds import DATASETS, LENGTH, documents


def test_no_evaluation_document_is_read_and_held_out_ones_are_apart() -> None:
    """Guards against a drafter that has seen what it is measured on."""
    text = collect(DATASETS, {}, 0.3, seed=0)
    for name, parts in text.documents.items():
        own = {d.document_id for d in DATASETS[name] if d.split == "tuning"}
        assert {*parts["training"], *parts["held_out"]} == own
        assert len(parts["training"]) + len(parts["held_out"]) == len(own)
        assert parts["held_out"]
        assert max(text.training[name].max(), text.held_out[name].max()) < 31  # evaluation has ids from 31 on
    assert collect(DATASETS, {}, 0.3, seed=0).documents == text.documents


def test_rows_come_from_data_sets_by_weight() -> None:
    """Guards against the larger data set drowning the other."""
    part = {"small": torch.zeros(50).long(), "large": torch.ones(5000).long()}
    rows = cut(part, {"small": 0.75, "large": 0.25}, 400, LENGTH, torch.Generator().manual_seed(0))
    assert rows.shape == (400, LENGTH)
    assert 60 < int(rows[:, 0].sum()) < 140
    assert int(cut(part, {"small": 1.0, "large": 0.0}, 50, LENGTH, torch.Generator().manual_seed(0)).sum()) == 0


def test_a_repeated_span_stands_twice() -> None:
    """Guards against batches that never hold a repetition, or reach beyond the row."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(2 * LENGTH).view(2, LENGTH)
    for _ in range(50):
        for row in repeat_span(rows, generator).tolist():
            assert len(row) == LENGTH
            assert len(set(row)) < LENGTH
    assert torch.equal(rows, torch.arange(2 * LENGTH).view(2, LENGTH))


def test_vocabulary_is_ordered_by_weighted_frequency_then_by_the_tokenizer() -> None:
    """Guards against a vocabulary of the larger data set alone, and against arbitrary order of unseen tokens."""
    tokens = {"a": [5] * 9 + [7], "b": [7] * 9 + [5]}
    datasets = {
        name: [d.__class__(d.document_id, "", d.split, d.origin, ids) for d in documents(name, 4)]
        for name, ids in tokens.items()
    }
    for weight, first in ((3.0, 5), (0.2, 7)):
        order = vocabulary_order(collect(datasets, {"a": weight}, 0.3, 0), 10, prior=0.1).tolist()
        assert order[0] == first
        assert order[2:] == [0, 1, 2, 3, 4, 6, 8, 9]
    assert vocabulary_order(collect(datasets, {}, 0.3, 0), 10, prior=1.0).tolist() == list(range(10))


def test_too_little_text_is_refused() -> None:
    """Guards against an obscure error of the random generator."""
    with pytest.raises(UserError, match="articles has 1 tuning documents; give at least 2"):
        collect({"articles": documents("article", 2)}, {}, 0.3, 0)
    with pytest.raises(UserError, match="text of articles has 5 tokens; give at least 16"):
        cut({"articles": torch.arange(5)}, {"articles": 1.0}, 2, LENGTH, torch.Generator())
    with pytest.raises(UserError, match="weight 0"):
        collect(DATASETS, {"articles": 0, "books": 0}, 0.3, 0)
