"""What one generation did: its rounds, commits and forwards, and the seconds they took. Knows no model."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dynatree.generation.ending import Ending

# Called with (tokens committed, how many of them were drafted); the prefill's token comes first.
OnCommit = Callable[[list[int], int], None]


class Round(NamedTuple):
    """One verification: a tree went in, `emitted` came out (accepted drafted tokens, then the target's own)."""

    drafted: int  # nodes verified, root apart
    depth: int  # of the verified tree
    accepted: int  # drafted tokens among the emitted
    emitted: list[int]
    draft_forwards: int | None = None  # None where the method does not tell
    tree: dict[str, list[Any]] | None = None  # tokens, parents, log_probs of the verified tree, node 0 the root
    path: list[int] | None = None  # accepted nodes, root first


# One for all phases: it is asked for in every round.
_UNRECORDED = nullcontext()


class Clock:
    """Seconds since the request's start; phases are recorded only by an instrumented pass."""

    stopped = False  # what runs while it is belongs to no request

    def __init__(self, instrumented: bool = False):
        self.instrumented = instrumented
        self.start = time.perf_counter()
        self.spans: list[tuple[int, str, float, float]] = []
        self.round = -1

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def after_commit(self) -> None:
        """Called after each commit, where a clock may stop."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Record the span of a phase of the current round, if instrumented."""
        return self._span(name) if self.instrumented else _UNRECORDED

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        begin = self.now()
        yield
        self.spans.append((self.round, name, begin, self.now()))


@dataclass
class Trace:
    """One request, from start to its last commit. `commits[0]` is the first commit, the others are the rounds'.

    Of requests that were decoded together: seconds count from the batch's start, forwards are those it took part in.
    """

    output: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)  # seconds since the start
    first: int = 0  # tokens of the first commit
    seconds: float = 0.0
    target_forwards: int = 0  # prefill apart
    draft_forwards: int = 0
    spans: list[tuple[int, str, float, float]] = field(default_factory=list)  # (round, phase, start, end)
    finish_reason: str = "length"  # or "eos", or "stop"


class Recorder:
    """Collects a Trace while a decoder runs: cuts at the output's end, stamps commits, tells `on_commit`."""

    def __init__(self, ending: Ending, on_commit: OnCommit | None, clock: Clock):
        self.clock = clock
        self.trace = Trace()
        self.finished = False
        self._ending = ending
        self._on_commit = on_commit

    def first(self, tokens: list[int], accepted: int = 0) -> None:
        """The first commit: what the prefill emits."""
        emitted = self._commit(tokens, accepted)
        self.trace.first = len(emitted)
        self.clock.round = 0

    def round(self, told: Round) -> None:
        """A round's commit, of which the record has what is within the output."""
        emitted = self._commit(told.emitted, told.accepted)
        if len(emitted) < len(told.emitted):
            told = told._replace(accepted=min(told.accepted, len(emitted)), emitted=emitted)
        self.trace.rounds.append(told)
        self.clock.round = len(self.trace.rounds)

    def _commit(self, tokens: list[int], accepted: int) -> list[int]:
        end = self._ending.after(tokens)
        emitted = tokens[:end]
        self.finished = end is not None
        self.trace.output += emitted
        self.trace.commits.append(self.clock.now())
        if self._on_commit is not None:
            self._on_commit(emitted, min(accepted, len(emitted)))
        self.clock.after_commit()
        return emitted

    def close(self, target_forwards: int, draft_forwards: int) -> Trace:
        """The finished trace. The prefill is one of the forwards counted at the model call."""
        trace = self.trace
        trace.seconds = self.clock.now()
        trace.finish_reason = self._ending.reason
        trace.target_forwards = target_forwards - 1
        trace.draft_forwards = draft_forwards
        trace.spans = self.clock.spans
        return trace
