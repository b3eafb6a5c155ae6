"""Dialogues that a chat model writes by itself: behind its template's opening it asks, and then it answers.

Magpie (Xu et al., ICLR 2025, 2406.08464): a model that was tuned to answer has seen what it is asked.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dynatree.errors import UserError

_ASKED, _ANSWERED, _AGAIN = "DYNATREE-ASKED", "DYNATREE-ANSWERED", "DYNATREE-AGAIN"


@dataclass(frozen=True)
class Template:
    """Tokens of a chat template: before the first question, and from a question's or an answer's end to what is next.

    `to_answer` and `to_question` begin with the token that ended the turn.
    """

    opening: tuple[int, ...]
    to_answer: tuple[int, ...]
    to_question: tuple[int, ...]


def template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The tokenizer's own. Raises UserError if it has no chat template, or none whose turns have an end in common."""
    if tokenizer.chat_template is None:
        raise UserError("labels.dialogue_share: the target has no chat template; choose 0")
    messages = [
        {"role": "user", "content": _ASKED},
        {"role": "assistant", "content": _ANSWERED},
        {"role": "user", "content": _AGAIN},
    ]
    text: Any = tokenizer.apply_chat_template(messages, tokenize=False)
    opening, _, rest = text.partition(_ASKED)
    to_answer, _, rest = rest.partition(_ANSWERED)
    to_question = rest.partition(_AGAIN)[0]
    parts = [tuple(tokenizer.encode(part, add_special_tokens=False)) for part in (opening, to_answer, to_question)]
    if not all(parts) or parts[1][0] != parts[2][0]:
        raise UserError("labels.dialogue_share: question and answer of the target's chat template have no common end")
    return Template(*parts)


class Turns:
    """Whose turn it is in each of `rows` dialogues, which the target writes together, a token a row at a time."""

    def __init__(self, chosen: Template, temperatures: Tensor):
        self.template, self.temperatures = chosen, temperatures
        self.asking = [True] * len(temperatures)
        self.pending: list[list[int]] = [[] for _ in self.asking]

    @property
    def warmth(self) -> Tensor:
        """The temperatures [rows] of the next tokens: questions are drawn at 1, or greedy rows would ask the same."""
        return torch.where(torch.tensor(self.asking), 1.0, self.temperatures)

    def follow(self, drawn: Tensor) -> Tensor:
        """The tokens [rows, 1] that are written: `drawn` [rows, 1], the target's, or between turns the template's."""
        written = drawn.flatten().tolist()
        for row, token in enumerate(written):
            if self.pending[row]:
                written[row] = self.pending[row].pop(0)
            elif token == self.template.to_answer[0]:
                turn = self.template.to_answer if self.asking[row] else self.template.to_question
                self.pending[row] = list(turn[1:])
                self.asking[row] = not self.asking[row]
        return torch.tensor(written).view_as(drawn)
