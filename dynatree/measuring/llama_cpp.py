"""llama.cpp on the file that a target was read from, beside the decoders here: plain, with lookup, with the drafter.

Another engine with its own arithmetic, and its own chance where tokens are drawn: its outputs differ from the target's
after a few tokens. Needs the extra `bench`.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dynatree.costs.cost_table import Curve
from dynatree.drafting.model import first_seen
from dynatree.errors import UserError
from dynatree.generation.ending import Ending
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, OnCommit, Recorder, Round, Trace
from dynatree.measuring import draft_gguf
from dynatree.measuring.draft_gguf import DraftFile

NAME, LOOKUP, DRAFT = "llama_cpp", "llama_cpp_lookup", "llama_cpp_draft"
# The forwards that are timed: over so many new tokens, behind so many committed ones.
TOKENS, CONTEXT, REPEATS = (1, 2, 4, 8, 16, 32, 64), 256, 15
# llama.cpp keeps room for a multiple of so many tokens; llama-cpp-python for as many as it was asked for.
_ROOM = 256

# From the text so far, the prompt first, to the tokens that are drafted.
Drafting = Callable[[np.ndarray], np.ndarray]


def check(options: GenerationOptions) -> None:
    """Raises UserError for logits processors that llama.cpp lacks."""
    if options.no_repeat_ngram_size or options.logits_processor:
        raise UserError(f"llama.cpp: {options.processors}; of these it knows repetition_penalty alone")


class Engine:
    """llama.cpp with the weights of a GGUF `file`, for texts of `context` tokens, on `threads` threads.

    `every`: it keeps the logits of every position, which speculation needs. Raises UserError where it is not installed.
    """

    def __init__(self, file: Path, context: int, threads: int, every: bool = False):
        _library()
        self.version = metadata.version("llama-cpp-python")
        self._context = _ROOM * math.ceil(context / _ROOM)
        self._model: Any = _loaded(file, self._context, threads, logits_all=every)

    def lookup(self, draft_tokens: int, max_ngram: int) -> Drafting:
        """Its prompt lookup."""
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        found: Drafting = LlamaPromptLookupDecoding(max_ngram_size=max_ngram, num_pred_tokens=draft_tokens)
        return found

    def tokens(
        self, prompt: Sequence[int], options: GenerationOptions, drafting: Drafting | None = None
    ) -> Iterator[int]:
        """The tokens after `prompt`, without end. Raises UserError as `check` does."""
        check(options)
        sampler = self._sampler(prompt, options)
        self._model.reset()
        self._model.draft_model = drafting
        # Its own would penalise the output alone, and divide by the temperature last.
        self._model._init_sampler = lambda **_: sampler
        found: Iterator[int] = self._model.generate([*prompt])
        return found

    def _sampler(self, prompt: Sequence[int], options: GenerationOptions) -> Any:
        """Its samplers in the order of transformers' processors and warpers, so that the distribution is the same."""
        sampler = _library()._internals.LlamaSampler()
        if options.repetition_penalty != 1:
            sampler.add_penalties(self._model.n_vocab(), self._context, options.repetition_penalty, 0.0, 0.0)
            for token in prompt:
                sampler.accept(token)
        if not options.sampled:
            sampler.add_greedy()
            return sampler
        if options.temperature != 1:
            sampler.add_temp(options.temperature)
        if options.top_k:
            sampler.add_top_k(options.top_k)
        if options.top_p < 1:
            sampler.add_top_p(options.top_p)
        if options.min_p:
            sampler.add_min_p(options.min_p)
        sampler.add_dist((options.torch_seed() or 0) % 2**32)
        return sampler

    def forwards(self, sizes: Sequence[int] = TOKENS, context: int = CONTEXT, repeats: int = REPEATS) -> Curve:
        """Median seconds of forwards over `sizes` new tokens, with the logits of each, behind `context` others.

        Each turn is two forwards, of which the second counts, and all is timed twice, of which the smaller median
        counts, as where those of a target are timed (forward_times.py).
        """
        model, batch = self._model, self._model._batch
        model.reset()
        model.eval([0] * context)

        def seconds(count: int) -> float:
            model._ctx.kv_cache_seq_rm(0, context, -1)
            batch.set_batch([0] * count, n_past=context, logits_all=True)
            begin = time.perf_counter()
            model._ctx.decode(batch)
            model._ctx.get_logits()  # which waits for them
            return time.perf_counter() - begin

        def medians() -> list[float]:
            turns = [[(seconds(count), seconds(count))[1] for count in sizes] for _ in range(repeats)]
            return [statistics.median(taken) for taken in zip(*turns, strict=True)]

        least = [min(both) for both in zip(medians(), medians(), strict=True)]
        return Curve(contexts=[context], tokens=[*sizes], seconds=[least])


class DraftEngine:
    """llama.cpp with a drafter's `file`, for texts of `context` tokens: the likeliest tokens, one after another.

    Its keys and values stay from round to round. Of a text that outgrows the drafter's window it sees the end, as the
    drafter does here (drafting/model.py). Logits processors and noise it knows nothing of.
    """

    def __init__(self, file: DraftFile, context: int, threads: int):
        self._file, seen = file, min(context, file.window or context)
        self._model: Any = _loaded(file.path, seen + _ROOM, threads, logits_all=False)
        self._most = self._model.n_batch
        self._batch: Any = _library()._internals.LlamaBatch(
            n_tokens=self._most, embd=file.embedding.shape[1], n_seq_max=1
        )
        raw = self._batch.batch
        shape = (self._most, file.embedding.shape[1])
        self._rows, self._positions, self._wanted = (
            np.ctypeslib.as_array(raw.embd, shape),
            np.ctypeslib.as_array(raw.pos, shape[:1]),
            np.ctypeslib.as_array(raw.logits, shape[:1]),
        )
        for place in range(self._most):
            raw.n_seq_id[place], raw.seq_id[place][0] = 1, 0
        self.reset()

    def reset(self) -> None:
        """Forget the text."""
        # The token of the text that stands first among the keys, and the tokens that do.
        self._begin, self._held = 0, np.empty(0, dtype=np.intc)

    def drafted(self, text: np.ndarray, count: int) -> np.ndarray:
        """`count` tokens after `text`."""
        begin = first_seen(self._file.window, len(text), self._begin)
        if begin != self._begin:
            self._begin, self._held = begin, self._held[:0]
        seen = text[begin:]
        both = min(len(self._held), len(seen) - 1)
        differing = np.flatnonzero(self._held[:both] != seen[:both])
        kept = int(differing[0]) if len(differing) else both
        self._model._ctx.kv_cache_seq_rm(0, kept, -1)
        found = np.empty(count, dtype=np.intc)
        fed = seen[kept:]
        for place in range(count):
            found[place] = self._next(fed, kept)
            kept, fed = kept + len(fed), found[place : place + 1]
        self._held = np.concatenate([seen, found[:-1]])
        return found

    def _next(self, tokens: np.ndarray, past: int) -> int:
        """The likeliest token after `tokens`, which stand behind `past` others."""
        for start in range(0, len(tokens), self._most):
            piece = tokens[start : start + self._most]
            count = len(piece)
            self._rows[:count] = self._file.embedding[piece]
            self._positions[:count] = np.arange(past + start, past + start + count)
            self._wanted[:count] = 0
            self._wanted[count - 1] = 1
            self._batch.batch.n_tokens = count
            self._model._ctx.decode(self._batch)
        logits = np.ctypeslib.as_array(self._model._ctx.get_logits_ith(-1), (len(self._file.vocabulary),))
        return int(self._file.vocabulary[logits.argmax()])


class Decoder:
    """Decoding by an engine, with what `drafting` proposes; `reset` is called before each text."""

    shared_noise: ClassVar[bool] = False
    audited: ClassVar[bool] = False

    def __init__(self, engine: Engine, drafting: Drafting | None = None, reset: Callable[[], None] = lambda: None):
        self._engine, self._drafting, self._reset = engine, drafting, reset

    def decode(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
    ) -> Trace:
        """As the decoders of dynatree/decoding, a round per token: the engine does not tell its own rounds.

        Raises UserError as `check` does.
        """
        recorder = Recorder(Ending(prompt, options), on_commit, clock or Clock())
        self._reset()
        for token in self._engine.tokens(prompt, options, self._drafting):
            if not recorder.trace.output:
                recorder.first([token])
            else:
                recorder.round(Round(0, 0, 0, [token]))
            if recorder.finished or len(recorder.trace.output) == options.max_new_tokens:
                break
        return recorder.close(target_forwards=1, draft_forwards=0)


class Ways:
    """The ways of llama.cpp to decode with the target in `file`: `plain`, and those of which `grids` lists knobs.

    `grids`: `lookup` and `draft`, each where it is to be tried, and the values of its knobs. `drafter`, `cache`: as of
    `draft_gguf.written`. Raises UserError as the engines do.
    """

    def __init__(
        self,
        file: Path,
        drafter: Path | None,
        cache: Path,
        grids: Mapping[str, dict[str, list[int]]],
        context: int,
        threads: int,
    ):
        room = max(context, CONTEXT + TOKENS[-1])
        self.engine, self._speculating = (Engine(file, room, threads, every) for every in (False, True))
        self._draft: DraftEngine | None = None
        if "draft" in grids:
            if drafter is None:
                raise UserError("llama.cpp: to draft with a model it takes a drafter, and none is given")
            self._draft = DraftEngine(draft_gguf.written(drafter, cache), context, threads)
        self.plain = Decoder(self.engine)
        self.grids = {f"{NAME}_{way}": grid for way, grid in grids.items()}

    def build(self, name: str, knobs: dict[str, int]) -> Decoder:
        """The way of this name, one of `grids`, with these knobs."""
        if name == LOOKUP:
            return Decoder(self._speculating, self._speculating.lookup(**knobs))
        draft, count = self._draft, knobs["draft_tokens"]
        assert draft is not None, f"{name} is one of {', '.join(self.grids)}"
        return Decoder(self._speculating, lambda text: draft.drafted(text, count), draft.reset)


def _library() -> Any:
    """llama-cpp-python. Raises UserError where it is not installed."""
    try:
        import llama_cpp
    except ImportError as error:
        raise UserError(
            f"llama.cpp is not installed ({error}); `make EXTRAS=dev,bench install` builds it, with a C++ compiler"
        ) from error
    return llama_cpp


def _loaded(file: Path, context: int, threads: int, logits_all: bool) -> Any:
    return _library().Llama(
        str(file), n_ctx=context, logits_all=logits_all, n_threads=threads, n_threads_batch=threads, verbose=False
    )
