"""A language model as drafter: logits over a draft vocabulary, behind the end of the text alone where it has a window.

Draft vocabulary: FR-Spec (Zhao et al., ACL 2025, 2502.14856). With a fusion it reads its target's hidden states (EAGLE,
Li et al., ICML 2024, 2401.15077; EAGLE-3, Li et al. 2025, 2503.01840): its row of a token is made of the token's
embedding and of the states at the position before, or of its own output there where the target has computed none.
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dynatree.engine.backend import Begin, Cache, End, Feed, Head, Output
from dynatree.engine.context import InContext
from dynatree.engine.eager.packing import PackedLinear, pack_rounded, weight_sizes
from dynatree.engine.fusion import Fusion
from dynatree.engine.language_model import LanguageModel
from dynatree.engine.successors import Successors
from dynatree.errors import UserError
from dynatree.files import DRAFT_VOCABULARY


class DraftModel:
    """`language_model`, drafting over the token ids `vocabulary` [v]; None, or all of them: over every token.

    `columns` [vocabulary]: the place of each token in the logits of `draft`, -1 for none; None: they are of all tokens.
    `window`: most committed tokens that it is to draft after, `draft_window` of its config; None: all. `reads`: the
    layers of the target behind which it reads states by `fusion`, `draft_reads` of its config; none: a plain model.
    Raises UserError for a vocabulary that is not the model's, a window that is no number of tokens, and reads that do
    not go with the fusion. `successors`: what its target puts after each token; None: it was not counted.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        vocabulary: Tensor | None = None,
        fusion: Fusion | None = None,
        successors: Successors | None = None,
    ):
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
        self.reads = checked_reads(self.name, language_model.model.config, fusion)
        self.fusion, self.successors = fusion, successors
        self._reader: Fusion | None = None
        self._own: tuple[int, ...] = ()
        if fusion is not None:
            self._reader = _reader(language_model, fusion)
            language_model.join(fusion if language_model.in_graph else self._reader)
            # Its own output stands for the target's where that has computed nothing.
            self._own = (language_model.model.config.num_hidden_layers,)
            language_model.expose(self._own)
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
        return self.language_model.weights(self._head) | (weight_sizes(self._reader) if self._reader else {})

    def prepare(self, requests: int = 1) -> None:
        """As `LanguageModel.prepare`."""
        self.language_model.prepare(requests)

    def new_caches(self, count: int) -> list[Cache]:
        """Empty caches of `count` sequences that one forward may append to."""
        return self.language_model.new_caches(count)

    @cached_property
    def in_context(self) -> InContext | None:
        """What its table of successors makes of the target's states; None: it reads none."""
        context = self.successors.context if self.successors else None
        embedding: Any = self.language_model.model.get_input_embeddings()
        return context and InContext(context, embedding.weight)

    def over_all_tokens(self) -> "DraftModel":
        """A drafter over the whole vocabulary, on the same model."""
        return DraftModel(self.language_model, fusion=self.fusion, successors=self.successors)

    def token_ids(self, places: Tensor) -> Tensor:
        """Token ids of `places` in the logits of `draft`."""
        return places if self.vocabulary is None else self.vocabulary[places]

    def fused(self, states: Tensor) -> Tensor:
        """One state [n, width] of the target's `states` [n, reads * width]; of a model that reads."""
        assert self._reader is not None, "a plain drafter reads nothing"
        fused: Tensor = self._reader.fused(states.to(self._reader.state_norm.weight.dtype))
        return fused

    def draft(
        self,
        tokens: Tensor,
        cache: Cache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last: int = 0,
    ) -> Tensor:
        """As `LanguageModel.forward`, but logits [n or 1, v] over the draft vocabulary: the head is most of a draft."""
        return self.draft_batch([Feed(tokens, cache, positions, mask, last)])[0].logits

    def draft_batch(self, feeds: Sequence[Feed]) -> list[Output]:
        """What comes of each of `feeds`, whose caches are rows of one batch, in one forward.

        The states of a model that reads are its own outputs [n, width].
        """
        return self.language_model.forward_batch(feeds, self._head, self._own)


def checked_reads(name: str, config: Any, fusion: Fusion | None) -> tuple[int, ...]:
    """`draft_reads` of a `config`, empty where there is none. Raises UserError where they do not go with `fusion`."""
    reads = getattr(config, "draft_reads", None)
    if reads is None and fusion is None:
        return ()
    numbers = isinstance(reads, list | tuple) and all(type(layer) is int and layer > 0 for layer in reads)
    if not reads or not numbers or list(reads) != sorted(set(reads)):
        raise UserError(f"{name}: draft_reads in its config is {reads!r}; give numbers of layers, ascending, from 1")
    if fusion is None:
        raise UserError(f"{name}: it reads its target's states (draft_reads), and is no language model by itself")
    if (fusion.reads, fusion.width) != (len(reads), config.hidden_size):
        raise UserError(f"{name}: its fusion is of {fusion.reads} states of width {fusion.width}, its config says else")
    return tuple(reads)


def _reader(language_model: LanguageModel, fusion: Fusion) -> Fusion:
    """`fusion` as it computes for `language_model`: where that is, and in its type."""
    dtype = torch.float32 if language_model.in_graph else language_model.dtype
    reader = copy.deepcopy(fusion).to(language_model.device, dtype)
    if language_model.in_graph:
        del reader.join  # which the graph computes
    if language_model.packed or language_model.in_graph:
        pack_rounded(reader)
    return reader


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
