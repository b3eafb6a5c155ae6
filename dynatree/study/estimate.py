"""How long the generation runs of a scale would take on one machine and on many, from what a finished run measured.

A plan, no measurement: each method keeps its measured speedup over autoregressive decoding.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dynatree.errors import UserError
from dynatree.measuring import pacing
from dynatree.study import grid
from dynatree.study.sections import Params

AUTOREGRESSIVE = "autoregressive"


class Part(NamedTuple):
    """The runs below one folder of the results: tokens that they emit, seconds of each."""

    title: str
    tokens: int
    seconds: list[float]


class Measured(NamedTuple):
    """Of pace.json: processor, seconds of an autoregressive step, what a prompt's token takes in it, speeds."""

    processor: str
    step: float
    prompt_token: float
    speed: dict[str, float]


def measured(pace: Mapping[str, Any]) -> Measured:
    """What `pace` (pace.json) says. Raises UserError without autoregressive decoding."""
    try:
        plain, speed = pace[AUTOREGRESSIVE], dict(pace["speedup"])
        step = plain["tpot_ms"] / 1000
        if not all(value > 0 for value in speed.values()):
            raise ValueError("a speedup that is not above 0")
        prompt_token = plain["ttft_ms"] / 1000 / step / pace["prompt_tokens"]
        return Measured(pace["machine"]["processor"], step, prompt_token, speed)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"pace: it lacks speeds of {AUTOREGRESSIVE} ({error!r}); run `make all` first") from error


def parts(params: Params, known: Measured, step: float, job: float) -> list[Part]:
    """Tokens and seconds of every generation run, by experiment; the arguments are those of `seconds`."""
    found: dict[str, Part] = {}
    for run in grid.expand(params).values():
        part = found.setdefault(run.top, Part(run.top, 0, []))
        every = [*part.seconds, seconds(run, params, known, step, job)]
        found[run.top] = Part(run.top, part.tokens + tokens(run), every)
    return list(found.values())


def tokens(run: grid.Run) -> int:
    """Those that a run emits."""
    return run.prompts * run.repeats * run.output_tokens


def seconds(run: grid.Run, params: Params, known: Measured, step: float, job: float) -> float:
    """Those of a run: an autoregressive step takes `step`, starting a job `job`.

    Methods that were not measured are taken to be as fast as autoregressive decoding; requests of a batch to follow one
    another.
    """
    prompt = run.prompt_tokens or params.sizes.prompt_tokens
    decoding = run.output_tokens / known.speed.get(run.method, 1.0)
    # The prompt before the first token, and prompt and output together in the audit.
    forwards = (2 * prompt + run.output_tokens) * known.prompt_token
    # A sample of the reference before and after each request, and every so often meanwhile.
    samples = 2 + decoding * step / pacing.pause(step)
    return job + run.prompts * run.repeats * (decoding + forwards + samples * pacing.SAMPLE_STEPS) * step


def makespan(seconds: Sequence[float], machines: int) -> float:
    """Seconds until all jobs are done on `machines`, each taking the longest that is left (Graham 1969)."""
    busy = [0.0] * machines
    for job in sorted(seconds, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + job)
    return max(busy)


def describe(found: Sequence[Part], machines: Sequence[int]) -> str:
    """A line an experiment, and one a number of machines."""
    every = [second for part in found for second in part.seconds]
    rows = [(part.title, len(part.seconds), part.tokens, sum(part.seconds)) for part in found]
    rows.append(("all", len(every), sum(part.tokens for part in found), sum(every)))
    lines = [f"{'experiment':<16}{'runs':>6}{'tokens':>12}{'hours':>9}"]
    lines += [f"{title:<16}{runs:>6,}{tokens:>12,}{seconds / 3600:>9.2f}" for title, runs, tokens, seconds in rows]
    for count in machines:
        taken = duration(makespan(every, count))
        lines.append(f"on {count} {'machine' if count == 1 else 'machines'}: {taken}")
    return "\n".join([*lines, f"longest run: {duration(max(every))}"])


def duration(seconds: float) -> str:
    """In the largest unit of which it is at least one and a half: `40 seconds`, `17 minutes`, `2.4 hours`."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
