"""Lookup and model in one tree: lookup gives long confident chains, the model alternatives where text is new.

Where both speak of one node, lookup's claim stands for its own token (or the model's, if larger) and the model shares
out the rest: siblings never sum to more than 1.
"""

import torch
from torch import Tensor

from dynatree.costs.step_rates import StepCalibration
from dynatree.drafting import lookup, model
from dynatree.engine.eager.batch import Feed
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.logits_processors import PLAIN, Processors
from dynatree.tree import TokenTree

MODEL = "optional"


class Drafter:
    """Without a model this is lookup alone."""

    def __init__(self, drafter: LanguageModel | None = None, calibration: StepCalibration | None = None):
        self._lookup = lookup.Drafter(calibration=calibration)
        self._model = model.Drafter(drafter, calibration) if drafter else None

    def start(self, processors: Processors = PLAIN, cache: KeyValueCache | None = None) -> None:
        """Forget the last request; the next one's `processors` apply to proposals too."""
        self._lookup.start(processors)
        if self._model:
            self._model.start(processors, cache)

    def free(self, committed: list[int], limit: int) -> tuple[Tensor, Tensor]:
        """Lookup's chain: tokens [k] and step log-probabilities [k]."""
        if self._model:
            self._model.free(committed, 0)
        return self._lookup.free(committed, limit)

    def depth_limit(self, committed: int) -> int:
        """Levels that the model can grow behind `committed` tokens."""
        return self._model.depth_limit(committed) if self._model else 0

    def ask(self, tree: TokenTree, frontier: Tensor, text: Tensor) -> Feed:
        """What to feed the model for the children of `frontier` [f]."""
        assert self._model, "without a model depth_limit is 0"
        return self._model.ask(tree, frontier, text)

    def answer(
        self, logits: Tensor, tree: TokenTree, frontier: Tensor, branch: int, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The model's children of `frontier` [f]: tokens [f, b], step log-probabilities [f, b]."""
        assert self._model, "without a model depth_limit is 0"
        tokens, steps = self._model.answer(logits, tree, frontier, branch, text)
        children = tree.parents == frontier[:, None]
        looked_up = children.any(1)
        if looked_up.any():
            # Below a node lookup has at most one child.
            child = children[looked_up].int().argmax(1)
            claim = (tree.log_probs[child] - tree.log_probs[frontier[looked_up]]).exp()[:, None]
            own = tokens[looked_up] == tree.tokens[child, None]
            probability = steps[looked_up].exp()
            agreed = (probability * own).sum(1, keepdim=True)
            rest = (1 - torch.maximum(claim, agreed)) / (1 - agreed).clamp(min=1e-6)
            steps = steps.clone()
            steps[looked_up] = torch.where(own, probability, probability * rest).clamp(min=1e-4, max=1).log()
        return tokens, steps

    def accept(self, kept: Tensor) -> None:
        """Keep the model's cache of the accepted nodes `kept` of the drafted tree."""
        if self._model:
            self._model.accept(kept)
