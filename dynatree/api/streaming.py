"""Text as it is committed, whichever decoder commits it."""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from time import perf_counter
from typing import Any, NamedTuple, Self

import torch

from dynatree.api.generation import Generation
from dynatree.api.text import Pieces
from dynatree.decoding import Decoder, StreamingDecoder
from dynatree.generation.options import GenerationOptions
from dynatree.generation.prefix_cache import PrefixCache
from dynatree.generation.trace import OnCommit, Trace


class Piece(str):
    """Text that was committed. `drafted`: of drafted tokens that were accepted; else of the target's own."""

    drafted: bool

    def __new__(cls, text: str, drafted: bool = False) -> Self:
        piece = super().__new__(cls, text)
        piece.drafted = drafted
        return piece


class Commit(NamedTuple):
    """`tokens`, the first `accepted` of which were drafted; `trace`: what there is of it by then."""

    tokens: list[int]
    accepted: int
    trace: Trace | None


class Stream(Iterator[Piece]):
    """The pieces of one output. `generation` is what has come of it, complete after the last piece.

    `close()` ends the output after the last commit.
    """

    def __init__(
        self, commits: Generator[Commit], pieces: Pieces, made: Callable[[Trace], Generation], streamer: Any = None
    ):
        self._commits, self._made, self._streamer = commits, made, streamer
        self._trace = Trace()
        self._shown = self._run(pieces)

    def __next__(self) -> Piece:
        return next(self._shown)

    def close(self) -> None:
        """End the output here."""
        self._shown.close()
        self._commits.close()
        self._tell_the_end()
        if not self._trace.seconds and self._trace.commits:
            self._trace.seconds, self._trace.finish_reason = self._trace.commits[-1], "stop"

    @property
    def generation(self) -> Generation:
        """What has come so far; its times are complete once it has ended, or is closed."""
        return self._made(self._trace)

    def _tell_the_end(self) -> None:
        """Once: a streamer prints what it held back."""
        if self._streamer is not None:
            self._streamer.end()
            self._streamer = None

    def _run(self, pieces: Pieces) -> Generator[Piece]:
        start = perf_counter()
        for tokens, accepted, trace in self._commits:
            if trace is None:
                # All that is known until it has ended, which it may never.
                self._trace.first = self._trace.first or len(tokens)
                self._trace.output += tokens
                self._trace.commits.append(perf_counter() - start)
            else:
                self._trace = trace
            if self._streamer is not None and tokens:
                self._streamer.put(torch.tensor(tokens))
            for drafted, part in ((True, tokens[:accepted]), (False, tokens[accepted:])):
                if text := "".join(pieces.add(token) for token in part):
                    yield Piece(text, drafted)
        self._tell_the_end()
        if rest := pieces.rest():
            yield Piece(rest)


def commits(
    decoder: Decoder, ids: Sequence[int], asked: GenerationOptions, kept: PrefixCache | None = None
) -> Generator[Commit]:
    """The commits of `decoder` after `ids`, one by one; closing it ends the decoding. `kept`: if the decoder can."""
    if isinstance(decoder, StreamingDecoder):
        return _from_traces(decoder.commits(ids, asked, kept))
    return _called_back(partial(decoder.decode, ids, asked))


def _from_traces(traces: Iterator[Trace]) -> Generator[Commit]:
    told = 0
    for trace in traces:
        accepted = trace.rounds[-1].accepted if trace.rounds else 0
        yield Commit(trace.output[told:], accepted, trace)
        told = len(trace.output)


class _Left(Exception):
    """Nobody listens any more."""


def _called_back(decode: Callable[[OnCommit], Trace]) -> Generator[Commit]:
    """Of a decoder that tells each commit by a call: it runs in a thread of its own."""
    told: SimpleQueue[Commit | BaseException] = SimpleQueue()
    left = Event()

    def on_commit(tokens: list[int], accepted: int) -> None:
        if left.is_set():
            raise _Left
        told.put(Commit(tokens, accepted, None))

    def run() -> None:
        try:
            told.put(Commit([], 0, decode(on_commit)))
        except BaseException as error:
            told.put(error)

    thread = Thread(target=run, name="dynatree-stream", daemon=True)
    thread.start()
    try:
        while True:
            item = told.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if item.trace is not None:
                return
    finally:
        left.set()
        thread.join()
