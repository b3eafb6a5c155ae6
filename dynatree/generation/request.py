"""Requests that are decoded together: each has its own text, cache and record, and leaves when it is finished."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.logits_processors import Processors, greedy_tokens
from dynatree.generation.trace import Clock, Recorder


class Request:
    """One prompt and up to `limit` tokens behind it."""

    target_forwards = 0  # of the prefill; the rounds' are counted for all requests at once
    draft_forwards = 0

    def __init__(self, prompt: list[int], limit: int, recorder: Recorder, cache: KeyValueCache):
        self.committed = [*prompt]
        self._ids = torch.empty(len(prompt) + limit, dtype=torch.long)
        self._ids[: len(prompt)] = torch.tensor(prompt)
        self.recorder = recorder
        self.cache = cache
        self._limit = limit

    @property
    def text(self) -> Tensor:
        """What is committed, as a tensor [t]."""
        return self._ids[: len(self.committed)]

    def extend(self, tokens: list[int]) -> None:
        """Commit `tokens`."""
        before = len(self.committed)
        self.committed += tokens
        self._ids[before : len(self.committed)] = torch.tensor(tokens)

    @property
    def wanted(self) -> int:
        """Tokens still wanted."""
        return self._limit - len(self.recorder.trace.output)

    @property
    def finished(self) -> bool:
        """Whether an end token or the limit was reached."""
        return self.recorder.finished or self.wanted <= 0

    @property
    def caches(self) -> tuple[KeyValueCache, ...]:
        """Rows that other requests need no longer see once this one is finished."""
        return (self.cache,)


R = TypeVar("R", bound=Request)


def rounds(target: LanguageModel, requests: list[R], processors: Processors, clock: Clock) -> Iterator[list[R]]:
    """Prefill, then before each round the requests that are not finished; closes the records of those that are.

    Finished rows are taken out of the caches: masked instead they would cost as much as before until the last ends.
    """
    for request in requests:
        before = target.forwards
        with clock.phase("prefill"):
            # One by one: a prompt fills a forward by itself, padding would only add to it.
            logits = target.forward(request.text, request.cache, last_only=True)
            token = greedy_tokens(processors.process(logits, request.text)).tolist()
        request.target_forwards = target.forwards - before
        request.recorder.first(token)
        request.extend(token)
    begun = target.forwards
    while requests:
        for request in requests:
            if request.finished:
                # It took part in every forward until now.
                request.recorder.close(request.target_forwards + target.forwards - begun, request.draft_forwards)
        going = [request for request in requests if not request.finished]
        if going and len(going) < len(requests):
            for rows in zip(*(request.caches for request in going), strict=True):
                KeyValueCache.retain(rows)
        requests = going
        if requests:
            yield requests
