"""Means over prompts with bootstrap intervals; the unit that is resampled is the document. Knows no model."""

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

RESAMPLES = 2000
MINIMUM_PROMPTS = 10
# The percentile interval of fewer is hardly wider than from the least to the largest of them, and misses too often.
MINIMUM_GROUPS = 6


def mean(values: Sequence[float], geometric: bool) -> float:
    """Arithmetic or geometric mean of non-empty `values`."""
    if geometric:
        return math.exp(math.fsum(math.log(v) for v in values) / len(values))
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of non-empty `values` about their mean."""
    middle = mean(values, geometric=False)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / len(values))


def median(values: Sequence[float]) -> float:
    """The middle one of non-empty `values`, of two the larger: a value that was measured."""
    return sorted(values)[len(values) // 2]


def interval(
    values: Sequence[float], groups: Sequence[str] | Sequence[tuple[str, str]], geometric: bool, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean, drawing whole `groups`; None of fewer than MINIMUM_GROUPS.

    Efron & Tibshirani 1993, chapter 13; seeded, so that equal input gives equal intervals.
    """
    by_group: dict[Any, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        by_group.setdefault(group, []).append(math.log(value) if geometric else value)
    drawn = [by_group[name] for name in sorted(by_group)]
    if len(drawn) < MINIMUM_GROUPS:
        return None
    means = sorted(
        mean([value for place in places for value in drawn[place]], geometric=False) for places in _draws(len(drawn))
    )
    tail = (1 - level) / 2
    low, high = means[round(tail * (RESAMPLES - 1))], means[round((1 - tail) * (RESAMPLES - 1))]
    return (math.exp(low), math.exp(high)) if geometric else (low, high)


@cache
def _draws(groups: int) -> list[list[int]]:
    """Which of so many groups each resample is of."""
    generator = random.Random(0)
    return [generator.choices(range(groups), k=groups) for _ in range(RESAMPLES)]


def significant(ends: tuple[float, float] | None, prompts: int) -> bool:
    """Whether a ratio differs from 1: the interval excludes it, and there are enough prompts."""
    return ends is not None and prompts >= MINIMUM_PROMPTS and (ends[0] > 1 or ends[1] < 1)
