"""A language model as drafter: logits over a draft vocabulary, behind the end of the text alone where it has a window.

Draft vocabulary: FR-Spec (Zhao et al., ACL 2025, 2502.14856).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from dynatree.engine.backend import Begin, Cache, End, Feed, Head
from dynatree.engine.eager.packing import PackedLinear
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.files import DRAFT_VOCABULARY


class DraftModel:
    """`language_model`, drafting over the token ids `vocabulary` [v]; None, or all of them: over every token.

    `columns` [vocabulary]: the place of each token in the logits of `draft`, -1 for none; None: they are of all tokens.
    `window`: most committed tokens that it is to draft after, `draft_window` of its config; None: all. Raises UserError
    for a vocabulary that is not the model's, and for a window that is no number of tokens.
    """

    def __init__(self, language_model: LanguageModel, vocabulary: Tensor | None = None):
        self.language_model = language_model
        size = language_model.vocabulary_size
        # A list of all tokens restricts nothing.
        self.vocabulary = vocabulary if vocabulary is not None and len(vocabulary) < size else None
        self.columns: Tensor | None = None
        self._head: Head | None = None
        if self.vocabulary is not None:
            self._head = _restricted_head(language_model, self.vocabulary)
            self.columns = torch.full((size,), -1)
            self.columns[self.vocabulary] = torch.arange(len(self.vocabulary))
        window = getattr(language_model.model.config, "draft_window", None)
        if not (window is None or (type(window) is int and window >= 2)):
            raise UserError(
                f"{self.name}: draft_window in its config is {window!r}; give a number of tokens, at least 2"
            )
        self.window: int | None = window
        if language_model.in_graph:
            # Its graph is made now, and not in the midst of the first request that drafts.
            with language_model.uncounted():
                self.draft(torch.tensor([0]), self.new_caches(1)[0])

    @property
    def name(self) -> str:
        """The model's."""
        return self.language_model.name

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that may go in."""
        return self.language_model.vocabulary_size

    @property
    def context_limit(self) -> int | None:
        """Most positions the model was made for; None if it does not say."""
        return self.language_model.context_limit

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return self.language_model.device

    @property
    def forwards(self) -> int:
        """Forwards so far."""
        return self.language_model.forwards

    def watched(self, begin: Begin, end: End) -> AbstractContextManager[None]:
        """Within, `begin` and `end` are called around each forward, and `end` behind the head of its vocabulary."""
        return self.language_model.watched(begin, end, self._head)

    def weights(self) -> dict[Any, int]:
        """Bytes of each of the weights that it computes with; those that another model shares have one key."""
        return self.language_model.weights(self._head)

    def prepare(self, requests: int = 1) -> None:
        """As `LanguageModel.prepare`."""
        self.language_model.prepare(requests)

    def new_caches(self, count: int) -> list[Cache]:
        """Empty caches of `count` sequences that one forward may append to."""
        return self.language_model.new_caches(count)

    def over_all_tokens(self) -> "DraftModel":
        """A drafter over the whole vocabulary, on the same model."""
        return DraftModel(self.language_model)

    def token_ids(self, places: Tensor) -> Tensor:
        """Token ids of `places` in the logits of `draft`."""
        return places if self.vocabulary is None else self.vocabulary[places]

    def draft(
        self,
        tokens: Tensor,
        cache: Cache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """As `LanguageModel.forward`, but logits [n or 1, v] over the draft vocabulary: the head is most of a draft."""
        return self.draft_batch([Feed(tokens, cache, positions, mask, last_only)])[0]

    def draft_batch(self, feeds: Sequence[Feed]) -> list[Tensor]:
        """What `draft` gives for each of `feeds`, whose caches are rows of one batch, in one forward."""
        return self.language_model.forward_batch(feeds, self._head)


@torch.inference_mode()
def _restricted_head(language_model: LanguageModel, ids: Tensor) -> Head:
    """The rows `ids` of the model's head, packed where its layers are."""
    head, name = language_model.model.get_output_embeddings(), language_model.name
    fits = int(ids.min()) >= 0 and int(ids.max()) < language_model.vocabulary_size
    if not isinstance(head, nn.Linear | PackedLinear) or not fits:
        raise UserError(f"{name}: {DRAFT_VOCABULARY} does not fit its vocabulary of {language_model.vocabulary_size}")
    if language_model.in_graph:
        return language_model.graph_head(ids)
    # A tied head keeps its dense weight in the embedding; another that is packed gives a copy.
    weight = head.dense_weight() if isinstance(head, PackedLinear) else head.weight
    restricted = nn.Linear(head.in_features, len(ids), bias=head.bias is not None, dtype=language_model.dtype)
    restricted = restricted.to(language_model.device).requires_grad_(False)
    restricted.weight.copy_(weight[ids])
    if head.bias is not None:
        restricted.bias.copy_(head.bias[ids])
    return PackedLinear(restricted, language_model.packed) if language_model.packed else restricted
