"""llama.cpp on the 4-bit file that a target was read from, beside the decoders here: what exactness in float32 costs.

Another engine on other weights: its outputs differ from the target's after a few tokens. Needs the extra `bench`.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

from dynatree.errors import UserError
from dynatree.processors import PLAIN, Processors
from dynatree.trace import Clock, OnCommit, Recorder, Trace

PLAIN_NAME, LOOKUP_NAME = "llama_cpp", "llama_cpp_lookup"


class Decoder:
    """Greedy decoding by llama.cpp, by its prompt lookup where `draft_tokens` are given."""

    def __init__(
        self, file: Path, context: int, threads: int, draft_tokens: int | None = None, max_ngram: int | None = None
    ):
        llama, lookup = _imported()
        drafter = lookup(max_ngram_size=max_ngram, num_pred_tokens=draft_tokens) if draft_tokens else None
        self._llama = llama(
            str(file),
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            draft_model=drafter,
            logits_all=drafter is not None,
            verbose=False,
        )

    def decode(
        self,
        prompt: list[int],
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
        processors: Processors = PLAIN,
    ) -> Trace:
        """As the decoders of dynatree/decoding, a round a token: the engine does not tell its own rounds.

        Raises UserError for logits processors, whose definitions differ there.
        """
        if processors != PLAIN:
            raise UserError(f"llama.cpp: {processors}; it is compared without logits processors")
        recorder = Recorder(eos_ids, on_commit, clock)
        self._llama.reset()
        for token in self._llama.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0):
            if not recorder.trace.output:
                recorder.first([token])
            else:
                recorder.round([token], accepted=0, drafted=0, depth=0)
            if recorder.finished or len(recorder.trace.output) == max_new_tokens:
                break
        return recorder.close(target_forwards=1, draft_forwards=0)


def version() -> str:
    """Of the engine."""
    return metadata.version("llama-cpp-python")


def _imported() -> tuple[Any, Any]:
    try:
        from llama_cpp import Llama
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
    except ImportError as error:
        raise UserError(
            f"llama.cpp is not installed ({error}); `make EXTRAS=dev,bench install` builds it, with a C++ compiler"
        ) from error
    return Llama, LlamaPromptLookupDecoding
