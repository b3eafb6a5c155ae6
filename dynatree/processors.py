"""Logits processors, applied to every node of a tree as `generate` applies them to every step.

A node's row is processed as if its path had been committed. Definitions: transformers' RepetitionPenaltyLogitsProcessor
(CTRL, Keskar et al. 2019, 1909.05858) and NoRepeatNGramLogitsProcessor.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from dynatree.knobs import Knobs
from dynatree.tree import TokenTree


class Processors(Knobs):
    """`repetition_penalty` 1: none; `no_repeat_ngram` 0: none, n: no n-gram occurs twice. Prompts count."""

    repetition_penalty: float = Field(gt=0, default=1.0)
    no_repeat_ngram: int = Field(ge=0, default=0)

    @property
    def active(self) -> bool:
        """Whether `process` changes anything."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram > 0

    @property
    def generation_options(self) -> dict[str, Any]:
        """The same for transformers' `generate`."""
        if not self.active:
            return {}
        return {"repetition_penalty": self.repetition_penalty, "no_repeat_ngram_size": self.no_repeat_ngram}

    @torch.inference_mode()
    def process(
        self,
        logits: Tensor,
        text: Tensor,
        tree: TokenTree | None = None,
        nodes: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Processed `logits` [n, v]: row i follows `text` [t] and the path to the i-th of `nodes` [n].

        In float32 where a processor is on. `text` ends with the tree's root. Without `nodes` the rows are all nodes,
        without a `tree` the root alone. `columns` [vocabulary] is where each token stands in `logits`, -1 for not at
        all; without it v is the whole.
        Float32 logits are overwritten: a copy of a whole vocabulary costs more than the rest.
        """
        if not self.active:
            return logits
        tree = TokenTree.root(int(text[-1])) if tree is None else tree
        visible = tree.ancestors if nodes is None else tree.ancestors[nodes]
        scores = logits.float()
        if self.repetition_penalty != 1:
            self._penalise(scores, text, tree, visible, columns)
        if self.no_repeat_ngram:
            for row, seen in zip(scores, visible, strict=True):
                # Index order is path order: parents precede children.
                banned = self._banned(torch.cat([text, tree.tokens[seen][1:]]))
                row[_places(banned, columns)[0].to(row.device)] = -torch.inf
        return scores

    def _penalise(self, scores: Tensor, text: Tensor, tree: TokenTree, visible: Tensor, columns: Tensor | None) -> None:
        # Places may come twice: both times the same value is read, and written.
        places = _places(text, columns)[0].to(scores.device)
        scores.index_copy_(1, places, self._penalised(scores.index_select(1, places)))
        if len(tree) > 1 and (fresh := (tree.tokens[:, None] != text).all(1)).any():
            tokens, there = _places(tree.tokens, columns)
            rows, nodes = (visible & fresh)[:, there].nonzero(as_tuple=True)
            rows, places = rows.to(scores.device), tokens[nodes].to(scores.device)
            scores[rows, places] = self._penalised(scores[rows, places])

    def _penalised(self, found: Tensor) -> Tensor:
        return torch.where(found < 0, found * self.repetition_penalty, found / self.repetition_penalty)

    def _banned(self, text: Tensor) -> Tensor:
        size = self.no_repeat_ngram
        if len(text) < size:
            return text[:0]
        windows = text.unfold(0, size, 1)
        again = (windows[:, :-1] == text[len(text) - size + 1 :]).all(1)
        return windows[again, -1].unique()


def _places(tokens: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """(columns of those of `tokens` [k] that have one, mask [k] of these)."""
    if columns is None:
        return tokens, torch.ones(len(tokens), dtype=torch.bool)
    places = columns[tokens]
    return places[places >= 0], places >= 0


PLAIN = Processors()
