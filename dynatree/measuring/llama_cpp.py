"""llama.cpp on the 4-bit file that a target was read from, beside the decoders here: what exactness in float32 costs.

Another engine on other weights: its outputs differ from the target's after a few tokens. Needs the extra `bench`.
"""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from dynatree.errors import UserError
from dynatree.generation.ending import Ending
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, OnCommit, Recorder, Trace

NAME, LOOKUP = "llama_cpp", "llama_cpp_lookup"


class Engine:
    """llama.cpp with the weights of a GGUF `file`, for texts of `context` tokens, on `threads` threads.

    `every`: it keeps the logits of every position, which its prompt lookup needs. Raises UserError where it is not
    installed.
    """

    def __init__(self, file: Path, context: int, threads: int, every: bool = False):
        try:
            from llama_cpp import Llama
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
        except ImportError as error:
            raise UserError(
                f"llama.cpp is not installed ({error}); `make EXTRAS=dev,bench install` builds it, with a C++ compiler"
            ) from error
        threaded = {"n_threads": threads, "n_threads_batch": threads}
        self.model: Any = Llama(str(file), n_ctx=context, logits_all=every, verbose=False, **threaded)
        self.lookup: Any = LlamaPromptLookupDecoding
        self.version = metadata.version("llama-cpp-python")


class Decoder:
    """Greedy decoding by an engine, by its prompt lookup where `draft_tokens` and `max_ngram` are given."""

    shared_noise: ClassVar[bool] = False

    def __init__(self, engine: Engine, draft_tokens: int | None = None, max_ngram: int | None = None):
        self._model = engine.model
        self._drafter = engine.lookup(max_ngram_size=max_ngram, num_pred_tokens=draft_tokens) if draft_tokens else None

    def decode(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
    ) -> Trace:
        """As the decoders of dynatree/decoding, a round per token: the engine does not tell its own rounds.

        Raises UserError for logits processors and sampling, whose definitions differ there.
        """
        if options.processors.active:
            raise UserError(f"llama.cpp: {options.processors}; it is compared without logits processors")
        if options.sampled:
            raise UserError("llama.cpp: it is compared on greedy text alone")
        recorder = Recorder(Ending(prompt, options), on_commit, clock or Clock())
        self._model.reset()
        self._model.draft_model = self._drafter
        for token in self._model.generate([*prompt], top_k=1, temp=0.0, repeat_penalty=1.0):
            if not recorder.trace.output:
                recorder.first([token])
            else:
                recorder.round([token], accepted=0, drafted=0, depth=0)
            if recorder.finished or len(recorder.trace.output) == options.max_new_tokens:
                break
        return recorder.close(target_forwards=1, draft_forwards=0)
