"""One request: its prompt and what is committed after it, its cache, its record."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dynatree.engine.backend import NO_STATES, Cache
from dynatree.generation.ending import Ending
from dynatree.generation.logits_processors import greedy_token
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, OnCommit, Recorder, Round
from dynatree.tree import TokenTree


class Request:
    """`prompt` and up to `options.max_new_tokens` tokens after it, with a `cache` of the target.

    `place`: of the prompt in the list that is decoded together.
    `padding`: tokens that logits processors and stopping criteria see before the prompt, and the target does not.
    `follows`: the request whose text this one begins like, if `cache` holds keys and values of it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        cache: Cache,
        on_commit: OnCommit | None,
        clock: Clock,
        padding: Sequence[int] = (),
        follows: "Request | None" = None,
        place: int = 0,
    ):
        self.committed = [*prompt]
        self.processors = options.processors
        self.sampler = options.sampler(place)
        self.cache = cache
        # Tokens that end its output.
        self.ends = options.eos_token_id
        self.follows = follows
        self.reused = cache.length  # tokens of the prompt that are not forwarded again
        # Of the committed positions that the target computed last, if it is read.
        self.states = NO_STATES
        self.recorder = Recorder(Ending(prompt, options, padding), on_commit, clock)
        self.prefill_forwards = 0  # those of the rounds are counted for all requests at once
        self.draft_forwards = 0
        self._limit = options.max_new_tokens
        self._padding = len(padding)
        # New memory for each row would take longer than what is done with it.
        self._row: Tensor | None = None
        self._ids = torch.empty(len(padding) + len(prompt) + self._limit, dtype=torch.long)
        # The same memory: numpy takes a fifth of torch's time to write a token.
        self._written = self._ids.numpy()
        self._written[: len(padding) + len(prompt)] = [*padding, *prompt]

    @property
    def text(self) -> Tensor:
        """What is committed, as a tensor [t]."""
        return self._ids[self._padding : self._padding + len(self.committed)]

    @property
    def last(self) -> Tensor:
        """The last token of it [1]."""
        end = self._padding + len(self.committed)
        return self._ids[end - 1 : end]

    @property
    def temperature(self) -> float:
        """That its tokens are drawn at; 0: they are not drawn."""
        return self.sampler.temperature if self.sampler else 0

    @property
    def remaining(self) -> int:
        """Tokens still wanted."""
        return self._limit - len(self.recorder.trace.output)

    @property
    def finished(self) -> bool:
        """Whether an end token or the limit was reached, or a criterion has stopped it."""
        return self.recorder.finished or self.remaining <= 0

    def process(self, logits: Tensor, tree: TokenTree | None = None, nodes: Sequence[int] | None = None) -> Tensor:
        """`logits` [n, vocabulary] by the logits processors: of all nodes of `tree` (None: of the text's end alone), or
        of `nodes` [n]. A single row is in memory that the next one is written to."""
        if not self.processors.active:
            return logits
        return self.processors.process(
            self._copied(logits), self._ids[: self._padding + len(self.committed)], tree, nodes, padding=self._padding
        )

    def _copied(self, logits: Tensor) -> Tensor:
        """Processors write into what they are given, and `logits` may be asked for again."""
        if len(logits) > 1:
            return logits.clone()
        if self._row is None or self._row.dtype != logits.dtype:
            self._row = torch.empty_like(logits)
        return self._row.copy_(logits)

    def next_token(self, logits: Tensor) -> int:
        """The token after the text by the target's `logits` [1, vocabulary] there: the likeliest, or the one drawn."""
        scores = self.process(logits)
        if self.sampler is None:
            return greedy_token(scores[0])
        return self.sampler.token(scores[0], len(self.committed))

    def prefilled(self, token: int) -> None:
        """Commit the prefill's token: the first root."""
        self.recorder.first([token])
        self._extend([token])

    def commit(self, told: Round) -> None:
        """Commit what a round has emitted, and record it."""
        self._extend(told.emitted)
        self.draft_forwards += told.draft_forwards or 0
        self.recorder.round(told)

    def _extend(self, tokens: list[int]) -> None:
        before = self._padding + len(self.committed)
        self.committed += tokens
        self._written[before : before + len(tokens)] = tokens
