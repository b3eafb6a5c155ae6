"""Plain greedy decoding, one token a forward: the reference that every other decoder must equal and beat."""

from collections.abc import Sequence

from dynatree.decoding import Batched, TargetAlone
from dynatree.engine.eager.batch import Feed
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.generation.logits_processors import Processors, greedy_tokens
from dynatree.generation.request import Request, rounds
from dynatree.generation.trace import Clock, OnCommit, Recorder, Trace


class Decoder(TargetAlone, Batched):
    """Our own autoregressive loop on our own cache."""

    def _decode(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        eos_ids: frozenset[int],
        on_commit: OnCommit | None,
        clock: Clock | None,
        processors: Processors,
    ) -> list[Trace]:
        target, clock = self._target, clock or Clock()
        for prompt in prompts:
            target.check_prompt(prompt, max_new_tokens)
        rows = [
            Request(prompt, max_new_tokens, Recorder(eos_ids, on_commit, clock), cache)
            for prompt, cache in zip(prompts, KeyValueCache.together(len(prompts)), strict=True)
        ]
        for going in rounds(target, rows, processors, clock):
            with clock.phase("verify"):
                answers = target.forward_batch([Feed(row.text[-1:], row.cache) for row in going])
                tokens = [
                    greedy_tokens(processors.process(logits, row.text)).tolist()
                    for row, logits in zip(going, answers, strict=True)
                ]
            for row, token in zip(going, tokens, strict=True):
                row.extend(token)
                row.recorder.round(token, accepted=0, drafted=0, depth=0, draft_forwards=0)
        return [row.recorder.trace for row in rows]
