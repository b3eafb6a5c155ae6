"""A backend in the place of a transformers model's forward: its own `generate` then runs on the same kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from dynatree.engine import backend
from dynatree.engine.backend import Backend, Feed


class _Held(CacheLayerMixin):
    """One layer that stands for all: `generate` asks for its length, and crops."""

    is_croppable = True

    def __init__(self, text: backend.Cache):
        super().__init__()  # type: ignore[no-untyped-call]
        self.text = text

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.text.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.text.length

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens."""
        self.text.crop(self.text.length + tokens_to_remove)


@contextmanager
def computed_by(of: Backend, model: PreTrainedModel) -> Iterator[None]:
    """Within, calls of `model` on one sequence are computed by `of`; its hooks see them as ever."""

    def forward(
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        (tokens,) = input_ids
        # What `generate` made of its own, empty, is put aside.
        ours = cache is not None and len(cache.layers) == 1 and isinstance(cache.layers[0], _Held)
        held = cache if cache is not None and ours else Cache(layers=[_Held(of.new_caches(1)[0])])
        # Behind a prompt the last ones alone: those of all would take time and memory.
        feed = Feed(tokens, held.layers[0].text, last=logits_to_keep)  # type: ignore[union-attr]
        (output,) = of.forward([feed])
        return CausalLMOutputWithPast(logits=output.logits[None], cache=held)

    # Of a generation within which this one is made, as by a criterion.
    outer = model.__dict__.get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if outer is not None:
            model.forward = outer
