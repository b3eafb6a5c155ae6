"""A cheap language model as drafter: one batched forward per tree level, with a draft cache that persists.

Knows no policy and no target. The draft cache lags behind the committed tokens (leaves, bonus tokens and plain
steps were never forwarded here); the first forward of a round feeds all that it lacks. A drafter with a window sees
the end of the text alone: one that was trained on short pieces is right less often behind more, and slower.
"""

import torch
from torch import Tensor

from dynatree.costs.step_rates import OnlineCorrection, StepCalibration
from dynatree.drafting import NOTHING
from dynatree.engine.eager.batch import Feed
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.logits_processors import PLAIN, Processors
from dynatree.tree import TokenTree

MODEL = "required"


def first_seen(window: int | None, committed: int, before: int) -> int:
    """Where the text begins that is drafted behind, if it began at `before`, once `committed` tokens are there.

    A text that outgrows the window is cut to half of it and fed afresh: cut by one it would be fed in every round.
    """
    return before if window is None or committed - before <= window else committed - window // 2


class Drafter:
    """Proposes the likeliest next tokens of `model` (SpecInfer, Miao et al. 2024, section 4: tree attention)."""

    def __init__(self, model: LanguageModel, calibration: StepCalibration | None = None):
        self._model = model
        self._calibration = calibration
        self.start()

    def start(self, processors: Processors = PLAIN, cache: KeyValueCache | None = None) -> None:
        """Forget the last request; the next one's `processors` apply to proposals too. `cache`: an empty one."""
        self._processors = processors
        self._cache = cache or KeyValueCache()
        # The committed token that stands first in the cache, and how many of them stand there in this round.
        self._begin = self._prefix = 0
        self._forwarded = torch.empty(0, dtype=torch.long)
        self._online = OnlineCorrection()
        # Of each node that was drafted below: the tokens and how likely they are together.
        self._proposed: dict[int, tuple[list[int], float]] = {}
        self._awaiting: list[tuple[int, list[int], float]] = []

    def depth_limit(self, committed: int) -> int:
        """Levels that the drafter's context admits behind `committed` tokens (the root is the last of them)."""
        limit = self._model.context_limit
        return 2**31 if limit is None else max(0, limit - (committed - self._begin) + 1)

    def free(self, committed: list[int], limit: int) -> tuple[Tensor, Tensor]:
        """No proposal without a forward: tokens [0] and log-probabilities [0]."""
        self._learn(committed)
        begin = first_seen(self._model.draft_window, len(committed), self._begin)
        if begin != self._begin:
            self._begin = begin
            self._cache.crop(0)
        return NOTHING

    def ask(self, tree: TokenTree, frontier: Tensor, text: Tensor) -> Feed:
        """What to feed the model for the children of `frontier` [f]: the lag and the root, or the frontier.

        `text` [t]: what is committed.
        """
        if len(frontier) == 1 and frontier[0] == 0:
            # The lag ends with the root, which is the last committed token.
            self._prefix = len(text) - self._begin
            self._forwarded = frontier[:0]
            return Feed(text[self._begin + self._cache.length :], self._cache, last_only=True)
        self._forwarded = torch.cat([self._forwarded, frontier])
        visible = tree.ancestors[frontier][:, self._forwarded]
        mask = torch.cat([torch.ones(len(frontier), self._prefix, dtype=torch.bool), visible], dim=1)
        return Feed(tree.tokens[frontier], self._cache, tree.depths[frontier] + self._prefix - 1, mask)

    def answer(
        self, logits: Tensor, tree: TokenTree, frontier: Tensor, branch: int, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens [f, b] and log-probabilities [f, b] (of the step, float32, likeliest first) after `frontier` [f].

        `logits` [f, v]: what the model gave for what was asked.
        """
        logits = self._processors.process(logits, text, tree, frontier, self._model.draft_columns)
        best = torch.log_softmax(logits.float(), dim=-1).topk(min(branch, logits.shape[-1]), dim=-1)
        # Rounding may leave a hair above 0, and a path probability must never rise; records hold finite numbers, and
        # where no token is possible, or logits overflowed, there are none.
        tokens, steps = best.indices.cpu(), best.values.cpu().nan_to_num(nan=-1e4).clamp(min=-1e4, max=0)
        if self._model.draft_vocabulary is not None:
            tokens = self._model.draft_vocabulary[tokens]
        if self._calibration is None:
            return tokens, steps
        steps = self._calibration.steps(steps)
        stated = steps.exp().sum(1).tolist()
        self._proposed |= dict(zip(frontier.tolist(), zip(tokens.tolist(), stated, strict=True), strict=True))
        return tokens, self._online.steps(steps)

    def accept(self, kept: Tensor) -> None:
        """Keep the cache of the accepted nodes `kept` (of the drafted tree, root first) that were forwarded."""
        self._awaiting = [
            (self._begin + self._prefix + place, *self._proposed[node])
            for place, node in enumerate(kept.tolist())
            if node in self._proposed
        ]
        self._proposed = {}
        if self._prefix:
            # Forwarded level by level, so the slots of a path are in path order.
            self._cache.keep(self._prefix, (self._forwarded[:, None] == kept).any(1).nonzero().squeeze(1))
            self._prefix = 0  # a round without drafting has nothing to keep

    def _learn(self, committed: list[int]) -> None:
        # Scored against what was committed, whether or not the proposals were verified.
        for place, tokens, stated in self._awaiting:
            if place < len(committed):
                self._online.observe(stated, committed[place] in tokens)
        self._awaiting = []
