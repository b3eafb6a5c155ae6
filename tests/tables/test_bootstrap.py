"""Means and bootstrap intervals, on numbers small enough to work out by hand."""

import pytest

from dynatree.tables import bootstrap


def test_means() -> None:
    """Guards against averaging ratios arithmetically: 2x and 0.5x cancel out."""
    assert bootstrap.mean([2.0, 0.5], geometric=True) == pytest.approx(1.0)
    assert bootstrap.mean([2.0, 0.5], geometric=False) == 1.25


def test_no_interval_from_a_single_document() -> None:
    """Guards against an interval of width zero where nothing is known of the spread."""
    assert bootstrap.interval([1.0, 2.0, 3.0], ["a", "a", "a"], geometric=False) is None


def test_no_interval_from_few_documents() -> None:
    """Guards against the range of a handful of values that is called a 95 % interval."""
    documents = ["a", "b", "c", "d", "e", "f"]
    assert bootstrap.interval([1.0, 2.0, 3.0, 4.0, 5.0], documents[:5], geometric=False) is None
    assert bootstrap.interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], documents, geometric=False) is not None


def test_the_median_is_a_value_that_was_measured() -> None:
    """Guards against a usual step that no request saw."""
    assert [bootstrap.median(values) for values in ([3.0], [4.0, 1.0, 2.0], [1.0, 2.0])] == [3.0, 2.0, 2.0]


def test_whole_documents_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a bootstrap over prompts: equal documents leave no spread, however their prompts differ."""
    monkeypatch.setattr(bootstrap, "MINIMUM_GROUPS", 2)
    values, documents = [1.0, 3.0, 1.0, 3.0], ["a", "a", "b", "b"]
    assert bootstrap.interval(values, documents, geometric=False) == (2.0, 2.0)
    low, high = bootstrap.interval(values, ["a", "b", "c", "d"], geometric=False)  # type: ignore[misc]
    assert low < 2.0 < high


def test_a_long_document_weighs_by_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a mean of document means, which is another quantity than the one reported."""
    monkeypatch.setattr(bootstrap, "MINIMUM_GROUPS", 2)
    values, documents = [0.0, 0.0, 0.0, 4.0], ["a", "a", "a", "b"]
    assert bootstrap.interval(values, documents, geometric=False) == (0.0, 4.0)
    # Half of the draws hold each document once; their mean over prompts is 1, over document means it would be 2.
    assert bootstrap.interval(values, documents, geometric=False, level=0.0) == (1.0, 1.0)


def test_equal_input_gives_an_equal_interval_in_any_order() -> None:
    """Guards against numbers that change when tables are made again."""
    values, documents = [1.0, 1.2, 0.9, 1.4, 1.1, 1.3], ["a", "b", "c", "d", "e", "f"]
    ends = bootstrap.interval(values, documents, geometric=True)
    assert ends == bootstrap.interval(values, documents, geometric=True)
    assert ends == bootstrap.interval(values[::-1], documents[::-1], geometric=True)


def test_a_higher_level_gives_a_wider_interval() -> None:
    """Guards against cutting the tails at the wrong side."""
    values, documents = [float(i) for i in range(12)], [str(i) for i in range(12)]
    narrow = bootstrap.interval(values, documents, geometric=False, level=0.5)
    wide = bootstrap.interval(values, documents, geometric=False, level=0.95)
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < 5.5 < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("ends", "prompts", "expected"),
    [
        ((1.1, 1.3), 10, True),
        ((0.7, 0.9), 10, True),
        ((1.1, 1.3), 9, False),
        ((0.9, 1.3), 40, False),
        ((1.0, 1.3), 40, False),
        (None, 40, False),
    ],
)
def test_significant_needs_ten_prompts_and_an_interval_without_one(
    ends: tuple[float, float] | None, prompts: int, expected: bool
) -> None:
    """Guards against claiming a win that the prompts do not carry."""
    assert bootstrap.significant(ends, prompts) is expected
