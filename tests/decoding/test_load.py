"""Hundreds of generations in one process: memory stays flat, and no request leaves anything to the next."""

import gc
import os
import random
from pathlib import Path
from typing import Any

import pytest

from dynatree import plugins
from dynatree.engine.language_model import LanguageModel
from tests import models
from tests.decoding.test_exactness import METHODS

STATM = Path("/proc/self/statm")
PROMPTS = [[(7 * number + 3 * place * place) % 50 + 1 for place in range(3 + number)] for number in range(8)]
TOKENS = 8
ROUNDS = 40
WARM = 15  # rounds over all prompts, until caches and the allocator's pools have their size
GROWTH = 8 * 2**20  # bytes; one leaked cache of these models a generation would be 25 MiB and more


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def build(method: str) -> Any:
    """The method's decoder on tiny models."""
    name, knobs = METHODS[method]
    target: LanguageModel = models.language_model()
    return plugins.load("decoding", name).Decoder(target, models.related(target), models.calibration(), **knobs)


@pytest.mark.slow
@pytest.mark.skipif(not STATM.is_file(), reason="the system does not tell a process its memory in /proc")
@pytest.mark.parametrize("method", ["cost aware", "hybrid", "assisted", "prompt_lookup"])
def test_memory_is_flat_and_outputs_stay(method: str) -> None:
    """Guards against caches, hooks and counters that grow with every request, and against what one leaves behind."""
    decoder, shuffle = build(method), random.Random(0)
    traces: dict[int, Any] = {}
    settled = 0
    for number in range(ROUNDS):
        if number == WARM:
            settled = resident()
        order = list(range(len(PROMPTS)))
        shuffle.shuffle(order)
        for place in order:
            trace = decoder.decode(PROMPTS[place], models.wanted(TOKENS))
            found = (trace.output, trace.rounds, trace.target_forwards, trace.draft_forwards)
            assert found == traces.setdefault(place, found), (number, place)
    grown = resident() - settled
    assert grown < GROWTH, f"{grown / 2**20:.1f} MiB over {(ROUNDS - WARM) * len(PROMPTS)} generations"


@pytest.mark.parametrize("method", METHODS)
def test_results_do_not_depend_on_what_came_before(method: str) -> None:
    """Guards against state of a request that the next one meets: each result equals that of a fresh decoder."""
    decoder, places = build(method), range(3)
    fresh = [build(method).decode(PROMPTS[place], models.wanted(TOKENS)) for place in places]
    for place in (*places, *reversed(places)):
        trace = decoder.decode(PROMPTS[place], models.wanted(TOKENS))
        assert (trace.output, trace.rounds) == (fresh[place].output, fresh[place].rounds)
