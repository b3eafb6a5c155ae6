"""A causal language model as this project sees it: tokens + positions + mask + cache -> logits.

All contact with transformers' forward is here and in cache.py; knows no tree, no drafter, no text source.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynatree.engine.eager import attention
from dynatree.engine.eager.batch import Feed, collate
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.eager.packing import PackedLinear, pack, weight_bytes
from dynatree.errors import UserError
from dynatree.files import DRAFT_VOCABULARY

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Relative to the spread of the logits; a wrong mask is off by the spread itself, a wrong position by a part of it.
_PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.1}


class LanguageModel:
    """A decoder-only transformers model whose attention takes a 4-D mask, with its forwards counted.

    Raises UserError for models that a tree cannot be verified with: encoder-decoders, sliding windows, recurrent
    state, positions that do not come from `position_ids`.

    `draft_vocabulary` [v]: the token ids that `draft` ranges over (FR-Spec, Zhao et al., ACL 2025, 2502.14856). With
    `packed` the linear layers are packed for the CPU where that is possible (packing.py), the model changed in place;
    `rounded` allows that less exactly, for a drafter, whose proposals the target verifies.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str = "model",
        draft_vocabulary: Tensor | None = None,
        packed: bool = False,
        rounded: bool = False,
    ):
        _refuse_unsupported(model, name)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self._counted = [0]  # a list, so that a view counts with its original
        model.register_forward_pre_hook(self._count)
        attention.install(model)
        # A list of all tokens restricts nothing.
        restricts = draft_vocabulary is not None and len(draft_vocabulary) < self.vocabulary_size
        self.draft_vocabulary = draft_vocabulary if restricts else None
        self._draft_head: nn.Module | None = (
            None if self.draft_vocabulary is None else self._restricted_head(self.draft_vocabulary)
        )
        # Where each token stands in the logits of `draft` [vocabulary], -1 for not at all; None: they are of all.
        self.draft_columns: Tensor | None = None
        if self.draft_vocabulary is not None:
            self.draft_columns = torch.full((self.vocabulary_size,), -1)
            self.draft_columns[self.draft_vocabulary] = torch.arange(len(self.draft_vocabulary))
        # torch wants a mask of the queries' type, which is known where all weights are of one.
        self._mask_dtype = self.dtype if len({p.dtype for p in model.parameters()}) == 1 else torch.bool
        # Before packing, which compares with the model as it is here.
        self._probe()
        self.packed = pack(model, name, rounded) if packed else None
        if self.packed and isinstance(self._draft_head, nn.Linear):
            self._draft_head = PackedLinear(self._draft_head, self.packed)
        self._counted[0] = 0

    def _count(self, *_: Any) -> None:
        self._counted[0] += 1

    @property
    def forwards(self) -> int:
        """Forwards so far, counted at the model call."""
        return self._counted[0]

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within, forwards are not counted: they belong to no request."""
        before = self._counted[0]
        yield
        self._counted[0] = before

    def over_all_tokens(self) -> "LanguageModel":
        """A view of the same model that drafts over the whole vocabulary."""
        view = copy(self)
        view.draft_vocabulary = view.draft_columns = view._draft_head = None
        return view

    @cached_property
    def device(self) -> torch.device:
        """Where tokens go in. Asked once: transformers looks through all parameters for it."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that may go in: rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def weight_bytes(self, beside: "LanguageModel | None" = None) -> int:
        """Bytes of all weights as they are held, a draft vocabulary's own head too; without those of `beside`."""
        held = [] if beside is None else beside.parts
        return weight_bytes(*held, *self.parts) - weight_bytes(*held)

    @property
    def parts(self) -> list[nn.Module]:
        """The model itself and, where it drafts over a vocabulary of its own, the head for it."""
        return [self.model, *([] if self._draft_head is None else [self._draft_head])]

    def share_embedding(self, other: "LanguageModel") -> None:
        """Take the embedding of `other`, and a head tied to it, in place of an equal one of its own."""
        own, theirs = (model.model.get_input_embeddings().weight for model in (self, other))
        if (own.shape, own.dtype, own.device) == (theirs.shape, theirs.dtype, theirs.device) and own.equal(theirs):
            for layer in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
                if getattr(layer, "weight", None) is own:
                    layer.weight = theirs

    @property
    def context_limit(self) -> int | None:
        """Most positions the model was made for; None if it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def draft_window(self) -> int | None:
        """Most committed tokens that it is to draft behind, `draft_window` of its config; None: all."""
        window: int | None = getattr(self.model.config, "draft_window", None)
        return window

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end an output, as transformers' `generate` would take them."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)

    @torch.inference_mode()
    def forward(
        self,
        tokens: Tensor,
        cache: KeyValueCache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits [n, vocabulary] (or [1, vocabulary] with `last_only`) of `tokens` [n], which `cache` appends.

        `positions` [n] and `mask` [n, cache.length + n] (True: may attend) default to plain continuation.
        """
        return self._logits(self._inputs(tokens, cache, positions, mask), 1 if last_only else 0)[0]

    @torch.inference_mode()
    def draft(
        self,
        tokens: Tensor,
        cache: KeyValueCache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """As `forward`, but logits [n or 1, v] over the draft vocabulary, if any: the head is most of a draft."""
        return self._draft_logits(self._inputs(tokens, cache, positions, mask), 1 if last_only else 0)[0]

    @torch.inference_mode()
    def forward_batch(self, feeds: Sequence[Feed]) -> list[Tensor]:
        """What `forward` gives for each of `feeds`, whose caches are rows of one batch, in one forward."""
        if len(feeds) == 1:
            return [self.forward(*feeds[0])]
        return self._unpadded(feeds, self._logits)

    @torch.inference_mode()
    def draft_batch(self, feeds: Sequence[Feed]) -> list[Tensor]:
        """What `draft` gives for each of `feeds`, whose caches are rows of one batch, in one forward."""
        if len(feeds) == 1:
            return [self.draft(*feeds[0])]
        return self._unpadded(feeds, self._draft_logits)

    def _inputs(
        self, tokens: Tensor, cache: KeyValueCache, positions: Tensor | None, mask: Tensor | None
    ) -> dict[str, Any]:
        if positions is None:
            positions = torch.arange(cache.length, cache.length + len(tokens))
        KeyValueCache.place([cache], [len(tokens)])
        return self._call(tokens[None], positions[None], None if mask is None else mask[None], cache)

    def _unpadded(self, feeds: Sequence[Feed], logits_of: Callable[[dict[str, Any], int], Tensor]) -> list[Tensor]:
        batch, counts = collate(feeds), [len(feed.tokens) for feed in feeds]
        columns = None if batch.columns is None else batch.columns.to(self.device)
        KeyValueCache.place([feed.cache for feed in feeds], counts, columns)
        wanted = [1 if feed.last_only else len(feed.tokens) for feed in feeds]
        inputs = self._call(batch.tokens, batch.positions, batch.mask, feeds[0].cache)
        logits = logits_of(inputs, max(wanted))
        return [row[-count:] for row, count in zip(logits, wanted, strict=True)]

    def _call(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValueCache) -> dict[str, Any]:
        device = self.device
        mask = None if mask is None else mask.to(device)[:, None]
        if mask is not None and self._mask_dtype != torch.bool:
            # Added to the scores, once a forward: torch would convert it in every layer.
            mask = torch.zeros(mask.shape, dtype=self._mask_dtype, device=device).masked_fill_(~mask, -torch.inf)
        return {
            "input_ids": tokens.to(device),
            "position_ids": positions.to(device),
            "attention_mask": mask,
            "cache": cache.states,
            "use_cache": True,
        }

    def _logits(self, inputs: dict[str, Any], last: int) -> Tensor:
        """Logits [b, last, vocabulary]; 0 stands for all tokens."""
        logits: Tensor = self.model(**inputs, logits_to_keep=last).logits
        return logits

    def _draft_logits(self, inputs: dict[str, Any], last: int) -> Tensor:
        """As `_logits`, over the draft vocabulary."""
        if self._draft_head is None:
            return self._logits(inputs, last)
        self._count()
        hidden = self.model.base_model(**inputs).last_hidden_state
        logits: Tensor = self._draft_head(hidden[:, -last:])
        return logits

    @torch.inference_mode()
    def _restricted_head(self, ids: Tensor) -> nn.Linear:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary_size:
            raise UserError(f"{self.name}: {DRAFT_VOCABULARY} does not fit its vocabulary of {self.vocabulary_size}")
        restricted = nn.Linear(head.in_features, len(ids), bias=head.bias is not None, dtype=self.dtype)
        restricted = restricted.to(self.device).requires_grad_(False)
        restricted.weight.copy_(head.weight[ids])
        if head.bias is not None:
            restricted.bias.copy_(head.bias[ids])
        return restricted

    @torch.inference_mode()
    def score(self, tokens: Tensor, last: int) -> Tensor:
        """Logits [last, vocabulary] of the `last` tokens of `tokens` [n], by one forward without a cache."""
        output = self.model(input_ids=tokens.to(self.device)[None], use_cache=False, logits_to_keep=last)
        return output.logits[0]

    def check_prompt(self, prompt: list[int], max_new_tokens: int, overshoot: int = 0) -> None:
        """Raise UserError if `prompt` is empty, has ids outside the vocabulary, or does not fit the context.

        `overshoot` is the number of positions that a method uses beyond the last wanted token; rotary positions go on
        beyond the context, learned ones do not.
        """
        if not prompt:
            raise UserError("prompt: it is empty; give at least one token")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens: {max_new_tokens}; give at least 1")
        wrong = next((token for token in prompt if not 0 <= token < self.vocabulary_size), None)
        if wrong is not None:
            raise UserError(
                f"prompt: token id {wrong} is outside {self.name}'s vocabulary 0..{self.vocabulary_size - 1}"
            )
        if getattr(self.model.config, "rope_parameters", None):
            overshoot = 0
        if self.context_limit is not None and len(prompt) + max_new_tokens + overshoot > self.context_limit:
            beyond = f" + {overshoot} drafted beyond them" if overshoot else ""
            most = max(0, self.context_limit - len(prompt) - overshoot)
            raise UserError(
                f"prompt of {len(prompt)} + max_new_tokens {max_new_tokens}{beyond} exceed {self.name}'s context of "
                f"{self.context_limit}; shorten the prompt or ask for at most {most}"
            )

    def _probe(self) -> None:
        """Check on three nodes that this model honours tree mask and positions: root -> a, root -> b."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.vocabulary_size, (4,), generator=generator)
        tree = KeyValueCache()
        self.forward(tokens[:1], tree)
        mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
        branch = self.forward(tokens[1:], tree, torch.tensor([1, 2, 2]), mask)[2].float()
        tree.crop(1)
        far = min(9, (self.context_limit or 10) - 1)
        shifted = self.forward(tokens[1:], tree, torch.tensor([1, 2, far]), mask)[2].float()
        path = self.forward(tokens[[0, 1, 3]], KeyValueCache())[2].float()
        spread = float(path.std())
        error = float((branch - path).abs().max())
        # Near-uniform attention hides a wrong position from any tolerance, so a position must also have an effect.
        if (far > 2 and torch.equal(branch, shifted)) or not error <= _PROBE_TOLERANCE[self.dtype] * spread + 1e-6:
            raise UserError(
                f"{self.name} ({type(self.model).__name__}): a tree branch and the same path decoded plainly differ by "
                f"{error:.3g} in logits (spread {spread:.3g}); "
                "models must honour a 4-D attention mask and position_ids, and have finite weights"
            )


def _refuse_unsupported(model: PreTrainedModel, name: str) -> None:
    config = model.config
    accepted = inspect.signature(model.forward).parameters
    rope = getattr(config, "rope_parameters", None) or {}
    layer_types = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None) if not layer_types else None
    drafts_behind = getattr(config, "draft_window", None)
    if not (drafts_behind is None or (type(drafts_behind) is int and drafts_behind >= 2)):
        raise UserError(f"{name}: draft_window in its config is {drafts_behind!r}; give a number of tokens, at least 2")
    reason = None
    if config.is_encoder_decoder:
        reason = "it is an encoder-decoder"
    elif layer_types - {"full_attention"}:
        reason = f"it has layers of type {', '.join(sorted(layer_types - {'full_attention'}))}"
    elif window is not None:
        reason = f"its attention has a sliding window of {window}"
    elif "cache" not in accepted:
        reason = "its forward takes no `cache` of keys and values (recurrent state?)"
    elif "position_ids" not in accepted:
        reason = "its forward takes no `position_ids`"
    elif getattr(config, "alibi", False):
        reason = "its positions are linear biases (ALiBi)"
    elif rope.get("rope_type") in ("dynamic", "longrope"):
        reason = f"its rotary positions ({rope['rope_type']}) depend on the longest position of a forward"
    elif model.dtype not in _PROBE_TOLERANCE:
        reason = f"its weights are {model.dtype}; choose one of {', '.join(DTYPES)}"
    if reason:
        raise UserError(
            f"{name} ({type(model).__name__}) cannot verify a token tree: {reason}. "
            "Use a decoder-only model with full attention, such as Llama, GPT-NeoX, GPT-2, Qwen2 or windowless Mistral"
        )


def check_pair(target: LanguageModel, drafter: LanguageModel) -> None:
    """Raise UserError unless both read the same token ids: equal vocabulary sizes and equal tokenizers."""
    if target.model is drafter.model:
        raise UserError(
            f"drafter and target are one object ({target.name}); load it twice, so that forwards are counted apart"
        )
    if target.tokenizer is not None and drafter.tokenizer is not None:
        ours, theirs = target.tokenizer.get_vocab(), drafter.tokenizer.get_vocab()
        if ours != theirs:
            token = next(t for t in sorted({*ours, *theirs}) if ours.get(t) != theirs.get(t))
            raise UserError(
                f"drafter {drafter.name} and target {target.name} have different tokenizers (for example {token!r} is "
                f"{theirs.get(token)} and {ours.get(token)}); take a drafter trained with the target's tokenizer"
            )
    if target.vocabulary_size != drafter.vocabulary_size:
        raise UserError(
            f"drafter {drafter.name} has a vocabulary of {drafter.vocabulary_size}, target {target.name} one of "
            f"{target.vocabulary_size}; take one with as many embeddings, trained with the target's tokenizer"
        )
