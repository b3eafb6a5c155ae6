"""Logits processors, applied to nodes of a tree as `generate` applies them to every step.

A node's row is processed as if its path had been committed. Verification by agreement has the nodes of the accepted
path processed, from the root to its end; traversal, and greedy decoding on a GPU, all nodes. Definitions: transformers'
RepetitionPenaltyLogitsProcessor (CTRL, Keskar et al. 2019, 1909.05858) and NoRepeatNGramLogitsProcessor.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dynatree.config import Knobs
from dynatree.errors import UserError
from dynatree.tree import TokenTree

RepetitionPenalty = Annotated[float, Field(gt=0)]
NGramSize = Annotated[int, Field(ge=0)]


# transformers' contract: (token ids [k, length], scores [k, vocabulary]) -> scores.
Processor = Callable[[Tensor, Tensor], Tensor]


class LogitsProcessors(Knobs):
    """`repetition_penalty` 1: none; `no_repeat_ngram_size` 0: none, n: no n-gram occurs twice. Prompts count.

    `further`: any others, applied after these; a drafter with a vocabulary of its own goes without.
    """

    repetition_penalty: RepetitionPenalty = 1.0
    no_repeat_ngram_size: NGramSize = 0
    further: tuple[Processor, ...] = ()

    @property
    def active(self) -> bool:
        """Whether `process` changes anything."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0 or len(self.further) > 0

    @property
    def generation_options(self) -> dict[str, Any]:
        """The same for transformers' `generate`, but for `further`."""
        if not self.active:
            return {}
        return self.model_dump(exclude={"further"})

    def process(
        self,
        logits: Tensor,
        text: Tensor,
        tree: TokenTree | None = None,
        nodes: Sequence[int] | None = None,
        columns: Tensor | None = None,
        padding: int = 0,
    ) -> Tensor:
        """Processed `logits` [n, v]: row i follows `text` [t] and the path to the i-th of `nodes` [n].

        In float32 where a processor is on. `text` ends with the tree's root. Without `nodes` the rows are all nodes,
        without a `tree` the root alone. `columns` [vocabulary] is where each token stands in `logits`, -1 for not at
        all; without it v is the whole. `padding`: tokens at the text's beginning that stand for nothing; as in
        transformers the repetition penalty passes them over, and other processors see them.
        Float32 logits are overwritten: a copy of a whole vocabulary costs more than the rest.
        """
        if not self.active:
            return logits
        with torch.inference_mode():
            return self._process(
                logits, text, TokenTree.root(int(text[-1])) if tree is None else tree, nodes, columns, padding
            )

    def _process(
        self,
        logits: Tensor,
        text: Tensor,
        tree: TokenTree,
        nodes: Sequence[int] | None,
        columns: Tensor | None,
        padding: int,
    ) -> Tensor:
        nodes = range(len(tree)) if nodes is None else nodes
        paths = [tree.paths[node] for node in nodes]
        scores = logits.float()
        if self.repetition_penalty != 1:
            self._penalise(scores, text[padding:], tree, paths, columns)
        if self.no_repeat_ngram_size:
            for row, path in zip(scores, paths, strict=True):
                banned = self._banned(torch.cat([text, tree.tokens[path]]))
                places = banned if columns is None else columns[banned]
                row[places[places >= 0].to(row.device)] = -torch.inf
        if self.further and columns is None:
            scores = self._process_further(scores, text, tree, nodes)
        return scores

    def _process_further(self, scores: Tensor, text: Tensor, tree: TokenTree, nodes: Sequence[int]) -> Tensor:
        """One call a depth: nodes of one depth follow texts of one length."""
        processed, depths = torch.empty_like(scores), [tree.nodes.depths[node] for node in nodes]
        for depth in sorted({*depths}):
            rows = [row for row, other in enumerate(depths) if other == depth]
            # The root ends the text.
            paths = torch.stack([tree.tokens[tree.paths[nodes[row]]] for row in rows])
            ids = torch.cat([text.expand(len(rows), -1), paths], dim=1).to(scores.device)
            found = scores[rows]
            for processor in self.further:
                found = processor(ids, found)
            processed[rows] = found
        return processed

    def _penalise(
        self, scores: Tensor, text: Tensor, tree: TokenTree, paths: Sequence[list[int]], columns: Tensor | None
    ) -> None:
        # The text, whose end is the root, counts for all rows; of the tree's other nodes those on a row's path.
        tokens = tree.nodes.tokens
        rows = np.array([row for row, path in enumerate(paths) for _ in path], np.int64)
        everywhere, own = text.numpy(), np.array([tokens[node] for path in paths for node in path], np.int64)
        if columns is not None:
            known = columns.numpy()
            everywhere, own = known[everywhere], known[own]
            everywhere, rows, own = everywhere[everywhere >= 0], rows[own >= 0], own[own >= 0]
        # In numpy on a CPU, where torch takes twice as long for it. Both take these indices.
        on: Any = scores.numpy() if scores.is_cpu else scores
        # Read before anything is written: a token may come twice, and is to be penalised once.
        before = on[rows, own]
        on[:, everywhere] = self._penalised(on[:, everywhere])
        on[rows, own] = self._penalised(before)

    def _penalised(self, found: Any) -> Any:
        penalty = self.repetition_penalty
        # Above 1 a penalty lowers a logit of either sign, so the lower one is its own; below 1 the other way round.
        return (found * penalty).clip(**{"max" if penalty > 1 else "min": found / penalty})

    def _banned(self, text: Tensor) -> Tensor:
        size = self.no_repeat_ngram_size
        if len(text) < size:
            return text[:0]
        windows = text.unfold(0, size, 1)
        again = (windows[:, :-1] == text[len(text) - size + 1 :]).all(1)
        banned: Tensor = windows[again, -1].unique()
        return banned


NO_PROCESSORS = LogitsProcessors()


def greedy_token(logits: Tensor) -> int:
    """The argmax of `logits` [vocabulary]: in float32, ties to the lowest id, as in `generate`.

    Raises UserError if they hold NaN, as overflowing half precision gives.
    """
    scores = logits.float()
    # numpy's is several times as fast as torch's on a CPU, and it promises the first of equal ones.
    on: Any = scores.numpy() if scores.is_cpu else scores
    best = int(on.argmax())
    check_numbers(float(on[best]), logits.dtype)
    return best


def greedy_tokens(logits: Tensor) -> Tensor:
    """The same [n], on the CPU, of `logits` [n, vocabulary].

    Raises UserError if the first row holds NaN: a drafted token that overflows leaves its NaN in the whole tree, and
    the first row is the root, which any decoder would have fed.
    """
    scores = logits.float()
    best = torch.from_numpy(scores.numpy().argmax(-1)) if scores.is_cpu else scores.argmax(-1).cpu()
    if len(best):
        check_numbers(float(scores[0, best[0]]), logits.dtype)
    return best


def check_numbers(largest: float, dtype: torch.dtype) -> None:
    """Raise UserError where the `largest` of logits of this `dtype` is NaN, as it is where any of them is."""
    if math.isnan(largest):
        raise UserError(
            f"the target's logits are not numbers ({dtype}): they overflow in half precision, or weights are bad"
        )
