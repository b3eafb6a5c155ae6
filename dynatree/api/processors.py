"""transformers' logits processors as functions of text and scores alone: they are asked for nodes of a tree, of several
at once, and not once a step for all prompts."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from dynatree.errors import UserError
from dynatree.generation.logits_processors import Processor

# Processors that remember their last call.
_STATEFUL = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)
# Those to which a row is a prompt, and what `generate` calls them.
_OF_PROMPTS: dict[type, str] = {
    PrefixConstrainedLogitsProcessor: "prefix_allowed_tokens_fn",
    EncoderRepetitionPenaltyLogitsProcessor: "encoder_repetition_penalty",
    EncoderNoRepeatNGramLogitsProcessor: "encoder_no_repeat_ngram_size",
}


def of_nodes(processors: Iterable[Any], prompts: int) -> list[Any]:
    """`processors` for the nodes of trees of so many `prompts`. Raises UserError for one that is not for these.

    Copies of a prompt are not counted where each row has the prompt's own place.
    """
    return [_of_nodes(processor, prompts) for processor in processors]


def _of_nodes(processor: Any, prompts: int) -> Any:
    if isinstance(processor, _STATEFUL):
        raise UserError(f"{type(processor).__name__}: it keeps what it saw from step to step, and a tree is no step")
    name = next((name for kind, name in _OF_PROMPTS.items() if isinstance(processor, kind)), None)
    if name is None:
        return processor
    if prompts > 1:
        raise UserError(
            f"{name}: it tells prompts by their place, and here are {prompts}; give one, and inside transformers' "
            "`generate` num_return_sequences=1"
        )
    return _row_by_row(processor)


def _row_by_row(processor: Processor) -> Processor:
    """Each row as the only one, which is the prompt's."""

    def each(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.cat([processor(*row) for row in zip(ids.split(1), scores.split(1), strict=True)])

    return each
