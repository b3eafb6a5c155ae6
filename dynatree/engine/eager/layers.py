"""What stands between the layers of a transformers model. Knows no cache and no drafter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


def blocks(model: PreTrainedModel) -> Any:
    """The layers of `model`, in order; None where it does not name them as Llama and GPT-NeoX do."""
    return getattr(model.base_model, "layers", None)


@contextmanager
def reading(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Within, a forward fills the list with the states [rows, n, width] behind `layers` (counts from 1) of `model`."""
    found: list[Any] = [None] * len(layers)

    def keep(place: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            found[place] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [blocks(model)[layer - 1].register_forward_hook(keep(place)) for place, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
