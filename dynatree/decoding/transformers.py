"""transformers' own greedy `generate`: the plain decoding that users have."""

from dynatree.decoding import TargetAlone
from dynatree.generation import hf_generate
from dynatree.generation.logits_processors import PLAIN, Processors
from dynatree.generation.trace import Clock, OnCommit, Trace


class Decoder(TargetAlone):
    """`generate(do_sample=False)`."""

    def decode(
        self,
        prompt: list[int],
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
        processors: Processors = PLAIN,
    ) -> Trace:
        """As `autoregressive`, by transformers."""
        return hf_generate.generate(
            self._target, None, prompt, max_new_tokens, eos_ids, on_commit, clock, **processors.generation_options
        )
