"""Forwards of a transformers causal LM over rows of our own cache: all contact with transformers' forward is here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dynatree.engine.backend import Begin, End, Feed, Output
from dynatree.engine.eager import attention
from dynatree.engine.eager.batch import collate
from dynatree.engine.eager.kv_cache import KeyValueCache, state_bytes
from dynatree.engine.eager.layers import reading
from dynatree.engine.eager.packing import weight_sizes
from dynatree.engine.fusion import Fusion

# Logits [..., v] of hidden states [..., width].
Head = Callable[[Tensor], Tensor]


class EagerBackend:
    """`model`, whose attention is set to torch's kernels."""

    def __init__(self, model: PreTrainedModel):
        attention.install(model)
        self._model = model
        # Asked once: transformers looks through all parameters for it.
        self.device: torch.device = model.device
        # torch wants a mask of the queries' type, which is known where all weights are of one.
        self._mask_dtype = model.dtype if len({p.dtype for p in model.parameters()}) == 1 else torch.bool
        self._fusion: Fusion | None = None

    def new_caches(self, count: int) -> list[KeyValueCache]:
        """Empty caches of `count` sequences that one forward may append to."""
        return KeyValueCache.rows(count)

    def begin(self, requests: int) -> None:
        """See `Backend`: nothing is made ready."""

    def join(self, fusion: Fusion) -> None:
        """From now on join the embedding of each token to a state, or to zeros."""
        self._fusion = fusion

    def expose(self, layers: Sequence[int]) -> None:
        """Nothing is to be made for the states behind `layers`."""

    def forward(
        self, feeds: Sequence[Feed], head: Head | None = None, reads: Sequence[int] = (), lent: bool = False
    ) -> list[Output]:
        """What comes of each of `feeds`, whose caches are rows of one batch, in one forward.

        `head`: what takes the place of the model's own on the last hidden states. Nothing is ever `lent`.
        """
        with reading(self._model, reads) as read:
            logits = self._logits(feeds, head)
        if not read:
            return [Output(row) for row in logits]
        states = torch.cat(read, -1).float()
        # Padded on the left, as everything.
        rows = [row[-len(feed.tokens) :] for row, feed in zip(states, feeds, strict=True)]
        return [Output(*pair) for pair in zip(logits, rows, strict=True)]

    def _logits(self, feeds: Sequence[Feed], head: Head | None) -> list[Tensor]:
        """Logits [n, v] of each of `feeds`, or of its last tokens."""
        # torch takes masks.
        feeds = [feed.spelled_out() for feed in feeds]
        wanted = [feed.wanted for feed in feeds]
        inputs, last = self._single(feeds[0]) if len(feeds) == 1 else self._batch(feeds), max(wanted)
        if head is None:
            logits: Tensor = self._model(**inputs, logits_to_keep=last).logits
        else:
            logits = head(self._model.base_model(**inputs).last_hidden_state[:, -last:])
        # Alone there is no padding to cut off, and each view of a tensor takes microseconds.
        return [logits[0]] if len(feeds) == 1 else [row[-n:] for row, n in zip(logits, wanted, strict=True)]

    def _single(self, feed: Feed) -> dict[str, Any]:
        tokens, cache, positions, mask, _, states, *_ = feed
        assert isinstance(cache, KeyValueCache)
        if positions is None:
            positions = torch.arange(cache.length, cache.length + len(tokens))
        KeyValueCache.place([cache], [len(tokens)])
        mask, states = (None if part is None else part[None] for part in (mask, states))
        return self._inputs(tokens[None], positions[None], mask, cache, states)

    def _batch(self, feeds: Sequence[Feed]) -> dict[str, Any]:
        batch, counts = collate(feeds), [len(feed.tokens) for feed in feeds]
        columns = None if batch.columns is None else batch.columns.to(self.device)
        caches = [cast(KeyValueCache, feed.cache) for feed in feeds]
        KeyValueCache.place(caches, counts, columns)
        return self._inputs(batch.tokens, batch.positions, batch.mask, caches[0], batch.states)

    def _inputs(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValueCache, states: Tensor | None
    ) -> dict[str, Any]:
        mask = None if mask is None else mask.to(self.device)[:, None]
        if mask is not None and self._mask_dtype != torch.bool:
            # Added to the scores, once a forward: torch would convert it in every layer.
            zeros = torch.zeros(mask.shape, dtype=self._mask_dtype, device=self.device)
            mask = zeros.masked_fill_(~mask, -torch.inf)
        name, fed = "input_ids", tokens.to(self.device)
        if self._fusion is not None:
            embedded = self._model.get_input_embeddings()(fed)
            state = torch.zeros_like(embedded) if states is None else states.to(embedded)
            name, fed = "inputs_embeds", self._fusion.joined(embedded, state)
        return {
            name: fed,
            "position_ids": positions.to(self.device),
            "attention_mask": mask,
            "cache": cache.states,
            "use_cache": True,
        }

    def score(self, tokens: Tensor, last: int) -> Tensor:
        """Logits [last, vocabulary] of the `last` tokens of `tokens` [n], by one forward without a cache."""
        output = self._model(input_ids=tokens.to(self.device)[None], use_cache=False, logits_to_keep=last)
        logits: Tensor = output.logits[0]
        return logits

    @contextmanager
    def watched(self, begin: Begin, end: End, head: Head | None = None) -> Iterator[None]:
        """Within, `begin` and `end` are called around each forward, whoever asks for it."""
        base: nn.Module = self._model.base_model
        hooks = [
            base.register_forward_pre_hook(lambda *_: begin()),
            base.register_forward_hook(lambda _, __, output: end(lambda: state_bytes(output["cache"]))),
        ]
        # Whichever comes last: drafting over a vocabulary of its own goes past the causal LM to a head of its own.
        last = [self._model, *([head] if isinstance(head, nn.Module) else [])]
        hooks += [module.register_forward_hook(lambda *_: end(None)) for module in last]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def weights(self, head: Head | None = None) -> dict[Any, int]:
        """Bytes of each of the weights of the model, and of `head`."""
        return weight_sizes(self._model, *([head] if isinstance(head, nn.Module) else []))
