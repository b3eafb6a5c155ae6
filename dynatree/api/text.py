"""Prompts of every kind to token ids, and committed tokens to text, piece by piece. Knows no decoder."""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dynatree.errors import UserError

# A text, token ids [t], or chat messages of `role` and `content`.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Tensor


def is_one(prompt: Any) -> bool:
    """Whether this is one prompt, and not a list of them."""
    if isinstance(prompt, str):
        return True
    if isinstance(prompt, Tensor):
        return prompt.dim() < 2
    return not isinstance(prompt, Sequence) or len(prompt) == 0 or isinstance(prompt[0], int | Mapping)


def encode(prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The token ids of one prompt; chat messages go through the tokenizer's template. Raises UserError."""
    if isinstance(prompt, Tensor) and (prompt.dim() == 0 or (prompt.dim() > 1 and prompt.shape[0] != 1)):
        raise UserError(f"prompt: a tensor of shape {[*prompt.shape]}; this takes one prompt, [t] or [1, t]")
    given: Any = prompt.flatten().tolist() if isinstance(prompt, Tensor) else prompt
    if isinstance(given, Mapping):
        raise UserError("prompt: a mapping; give its `input_ids`, without padding, or for a chat a list of messages")
    if not isinstance(given, str | Sequence):
        raise UserError(f"prompt: {type(given).__name__}; give a text, token ids, or chat messages")
    if not isinstance(given, str) and len(given) and not isinstance(given[0], int | Mapping):
        raise UserError(f"prompt: a list of {type(given[0]).__name__}; this takes one prompt: a text, ids or messages")
    if not isinstance(given, str) and (not len(given) or isinstance(given[0], int)):
        if odd := [token for token in given if not isinstance(token, SupportsIndex)]:
            raise UserError(f"prompt: {odd[0]!r} among token ids; give whole numbers")
        return [int(token) for token in given]
    if tokenizer is None:
        raise UserError("prompt: the model has no tokenizer; give token ids, or a tokenizer")
    if isinstance(given, str):
        return list(tokenizer.encode(given))
    if tokenizer.chat_template is None:
        raise UserError("prompt: chat messages need a tokenizer with a chat template, and this one has none; give text")
    messages = [dict(message) for message in given]
    if wrong := next((message for message in messages if not {"role", "content"} <= set(message)), None):
        raise UserError(f"prompt: message {wrong}; each has `role` and `content`")
    try:
        ids: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as error:
        # As by templates that want a user and an assistant in turn, or no system message.
        raise UserError(f"prompt: the tokenizer's chat template refuses these messages: {error}") from error
    return [int(token) for token in ids]


class Pieces:
    """Text of committed tokens as it becomes whole: a character of several tokens waits for the last of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, skip_special_tokens: bool = False):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        """What can be shown once `token` is there, nothing if a character is incomplete."""
        self._ids.append(token)
        if self._tokenizer is None:
            return f"{token} "
        text = self._decoded()
        if text.endswith("\ufffd"):
            return ""
        piece, self._shown = text[len(self._shown) :], text
        return piece

    def rest(self) -> str:
        """What still waits, which the output's end cut short."""
        return self._decoded()[len(self._shown) :]

    def _decoded(self) -> str:
        if self._tokenizer is None:
            return ""
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=self._skip))
