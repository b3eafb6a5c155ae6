"""A causal language model as this project sees it: tokens + positions + mask + cache -> logits. The one door.

Knows no tree, no drafter, no text source; how a forward is computed is the backend's (eager/, graph/).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dynatree.config import QUANTISED
from dynatree.engine.backend import Backend, Begin, Cache, End, Feed, Head, Output
from dynatree.engine.compatibility import ROUNDING, probe, refuse_not_finite, refuse_unsupported
from dynatree.engine.eager.backend import EagerBackend
from dynatree.engine.eager.layers import blocks
from dynatree.engine.eager.packing import is_packed, pack, unpack
from dynatree.engine.fusion import Fusion
from dynatree.engine.in_transformers import computed_by
from dynatree.errors import UserError

if TYPE_CHECKING:
    from dynatree.engine.graph.backend import GraphBackend

# All values of a weight would take a second a gigabyte.
_SAMPLED = 64


class _Count:
    """Of forwards, and nothing else: a copy of the model has a copy of it."""

    def __init__(self) -> None:
        self.forwards = 0

    def one_more(self, *_: Any) -> None:
        self.forwards += 1


class _Before:
    """What a model was before anybody here changed it, and who holds it now: the last to leave puts that back."""

    def __init__(self, model: PreTrainedModel):
        self.holders: WeakSet[LanguageModel] = WeakSet()
        # One for all holders: what is set for a generation lies on the model.
        self.lock = RLock()
        # The thread whose forwards have torch's one thread (`threads`), as one that holds the lock knows of itself.
        self.holder: int | None = None
        # The model's own, while a generation has another in its place.
        self.generation_config: GenerationConfig | None = None
        self._fingerprint = ""
        self._attention = model.config._attn_implementation
        # Names: the modules would keep the model alive.
        self._training = {name for name, module in model.named_modules() if module.training}

    def fingerprint(self, model: PreTrainedModel) -> str:
        """What tells it apart; of packed layers, which have no weights to be told by, as before they were packed."""
        if not (self._fingerprint and is_packed(model)):
            self._fingerprint = fingerprint(model)
        return self._fingerprint

    def restore(self, model: PreTrainedModel) -> None:
        unpack(model)
        if model.config._attn_implementation != self._attention:
            model.set_attn_implementation(self._attention)
        for name, module in model.named_modules():
            if name in self._training:
                module.training = True


# As long as a model is there.
_before: WeakKeyDictionary[PreTrainedModel, _Before] = WeakKeyDictionary()


class LanguageModel:
    """A decoder-only transformers model whose attention takes a 4-D mask, with its forwards counted.

    With `packed` the linear layers are packed for the CPU where that is possible (packing.py), the model changed in
    place; `rounded` allows that less exactly, for a drafter, whose proposals the target verifies. With `restorable` the
    dense layers are held on to, and the `release` of the last that holds the model puts it back as it was. `format`:
    one of GRAPH_FORMATS, in which it computes by a graph of its own (graph/), the model unchanged; None, or one of
    torch's where there is no graph of its architecture: by torch, in the type of its weights. `exact`: what a tree's
    logits are to those of its paths decoded token by token (compatibility.py, `probe`). Raises UserError for int8 and
    int4 of an architecture without a graph, and for models that a tree cannot be verified with: encoder-decoders,
    sliding windows, recurrent state, positions that do not come from `position_ids`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str = "model",
        packed: bool = False,
        rounded: bool = False,
        restorable: bool = False,
        format: str | None = None,
    ):
        refuse_unsupported(model, name)
        before = _before.get(model) or _before.setdefault(model, _Before(model))
        before.holders.add(self)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self._counted = _Count()
        self._before = before
        self._hook = model.register_forward_pre_hook(self._counted.one_more)
        self.fingerprint = before.fingerprint(model)
        self.exact = ROUNDING
        try:
            self._set_up(model, packed, rounded, restorable, format)
        except BaseException:
            # Nobody gets this object, and could put the model back by it.
            self.release()
            raise
        self._counted.forwards = 0

    def _set_up(
        self, model: PreTrainedModel, packed: bool, rounded: bool, restorable: bool, format: str | None
    ) -> None:
        on_cpu = model.device.type == "cpu"
        graph = graph_backend(model, format, self.name, rounded) if format and on_cpu else None
        self.in_graph = graph is not None
        self.format = graph.format if graph else str(model.dtype).removeprefix("torch.")
        self._backend: Backend = graph or EagerBackend(model)
        # Before packing, which compares with the model as it is here. A drafter's proposals may be any.
        if self.in_graph and rounded:
            refuse_not_finite(model, self.name)
        else:
            self.exact = probe(self)
        self.packed = pack(model, self.name, rounded, restorable) if packed and not self.in_graph else None

    def release(self) -> None:
        """Put the model back as it was, if nobody else holds it: layers, attention, training mode. No hook is left.

        This object is of no use afterwards.
        """
        self._hook.remove()
        before = _before.get(self.model)
        if before is None:
            return
        before.holders.discard(self)
        if not before.holders:
            del _before[self.model]
            before.restore(self.model)

    @property
    def forwards(self) -> int:
        """Forwards so far, counted at the model call."""
        return self._counted.forwards

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, the model is the calling thread's alone: its forwards share their buffers, and what is set for one
        generation is seen by no other, whoever holds the model."""
        with self._before.lock:
            yield

    @contextmanager
    def configured(self, config: GenerationConfig) -> Iterator[None]:
        """Within, `config` is the model's, and the model the calling thread's `alone`."""
        with self.alone():
            outer, own = self._before.generation_config, self.model.generation_config
            # Of generations one within another the outermost knows the model's own.
            self._before.generation_config = own if outer is None else outer
            self.model.generation_config = config
            try:
                yield
            finally:
                self.model.generation_config, self._before.generation_config = own, outer

    def threads(self) -> AbstractContextManager[Any]:
        """As `alone`, with the threads that its forwards want.

        Torch has one thread where a graph has the cores: its others would spin, for milliseconds a step.
        """
        # Most often within another: a decoder's rounds.
        return self._before.lock if self._before.holder == get_ident() else self._with_one()

    @contextmanager
    def _with_one(self) -> Iterator[None]:
        with self.alone():
            before = torch.get_num_threads()
            if not self.in_graph or before == 1:
                yield
                return
            torch.set_num_threads(1)
            self._before.holder = get_ident()
            try:
                yield
            finally:
                self._before.holder = None
                torch.set_num_threads(before)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Within, transformers' `generate` of `model` computes as `forward` does."""
        with ExitStack() as stack:
            stack.enter_context(self.threads())
            if self.in_graph:
                stack.enter_context(torch.inference_mode())
                stack.enter_context(computed_by(self._backend, self.model))
            yield

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within, forwards are not counted: they belong to no request."""
        before = self._counted.forwards
        try:
            yield
        finally:
            self._counted.forwards = before

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return self._backend.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that may go in: rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def watched(self, begin: Begin, end: End, head: Head | None = None) -> AbstractContextManager[None]:
        """Within, `begin` and `end` are called around each forward, whichever decoder asks for it."""
        return self._backend.watched(begin, end, head)

    def weights(self, head: Head | None = None) -> dict[Any, int]:
        """Bytes of each of the weights that it computes with; those that another model shares have one key."""
        return self._backend.weights(head)

    def share_embedding(self, other: "LanguageModel") -> None:
        """Take the embedding of `other`, and a head tied to it, in place of an equal one of its own."""
        own, theirs = (model.model.get_input_embeddings().weight for model in (self, other))
        if (own.shape, own.dtype, own.device) == (theirs.shape, theirs.dtype, theirs.device) and own.equal(theirs):
            for layer in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
                if getattr(layer, "weight", None) is own:
                    layer.weight = theirs

    @property
    def _config(self) -> Any:
        """Of the text, where the model also takes images or the like."""
        return self.model.config.get_text_config(decoder=True)

    # Asked each round, and transformers takes 20 µs to answer.
    @cached_property
    def context_limit(self) -> int | None:
        """Most positions the model was made for; None if it does not say."""
        limit: int | None = getattr(self._config, "max_position_embeddings", None)
        return limit

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end an output, as transformers' `generate` would take them."""
        # Not those of a generation that another thread is in, and which need not end first.
        config = self._before.generation_config or self.model.generation_config
        ids = getattr(config, "eos_token_id", None)
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)

    def prepare(self, requests: int = 1) -> None:
        """Do at once what forwards of so many requests do as they add up: graphs are compiled for what recurs."""
        if self.in_graph:
            cast("GraphBackend", self._backend).prepare(requests)

    def join(self, fusion: Fusion) -> None:
        """From now on join the embedding of each token to the state that is fed with it, or to zeros where none is."""
        self._backend.join(fusion)

    def expose(self, layers: Sequence[int]) -> None:
        """Make ready at once what gives the hidden states behind so many `layers`, each from 1 to all of them.

        Logits stay the same. Raises UserError for other layers, and for a model whose layers are not known.
        """
        if not layers:
            return
        known = blocks(self.model)
        if known is None:
            raise UserError(f"{self.name} ({type(self.model).__name__}): its layers are not known, and cannot be read")
        if wrong := [layer for layer in layers if not 1 <= layer <= len(known)]:
            raise UserError(f"draft_reads: {wrong[0]}; {self.name} has layers 1 to {len(known)}")
        self._backend.expose(layers)

    def begin(self, requests: int) -> None:
        """So many requests are about to be decoded together; `new_caches` says so by itself."""
        self._backend.begin(requests)

    def new_caches(self, count: int) -> list[Cache]:
        """Empty caches of `count` sequences that one forward may append to."""
        return list(self._backend.new_caches(count))

    def graph_head(self, ids: Tensor) -> Head:
        """The rows `ids` [v] of the model's head, as `forward_batch` takes them where it computes in a graph."""
        backend: Any = self._backend
        head: Head = backend.head_over(ids)
        return head

    def forward(
        self,
        tokens: Tensor,
        cache: Cache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last: int = 0,
    ) -> Tensor:
        """Logits [n, vocabulary] (of the `last` tokens alone, if not 0) of `tokens` [n], which `cache` appends.

        `positions` [n] and `mask` [n, cache.length + n] (True: may attend) default to plain continuation.
        """
        return self.forward_batch([Feed(tokens, cache, positions, mask, last)])[0].logits

    def forward_batch(
        self, feeds: Sequence[Feed], head: Head | None = None, reads: Sequence[int] = (), lent: bool = False
    ) -> list[Output]:
        """What comes of each of `feeds`, whose caches are rows of one batch, in one forward.

        `head`: what takes the place of the model's own. `reads`: the layers, as of `expose`, whose states are given.
        `lent`: logits may lie where the model's next forward writes, and are not to be changed.
        """
        if head is not None or self.in_graph:
            self._counted.one_more()  # it goes past the causal LM, which counts by itself
        # Decoders' rounds are in it, and entering it takes as long as a step of theirs.
        with nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode():
            return self._backend.forward(feeds, head, reads, lent)

    def states(self, tokens: Tensor, layers: Sequence[int]) -> Tensor:
        """The hidden states [n, layers * width] behind `layers`, as of `expose`, along `tokens` [n]."""
        feed = Feed(tokens, self.new_caches(1)[0], last=1)
        return self.forward_batch([feed], reads=layers)[0].states

    @torch.inference_mode()
    def score(self, tokens: Tensor, last: int) -> Tensor:
        """Logits [last, vocabulary] of the `last` tokens of `tokens` [n], by one forward without a cache."""
        return self._backend.score(tokens, last)

    def check_prompt(self, prompt: Sequence[int], max_new_tokens: int, overshoot: int = 0) -> None:
        """Raise UserError if `prompt` is empty, has ids outside the vocabulary, or does not fit the context.

        `overshoot` is the number of positions that a method uses beyond the last wanted token; rotary positions go on
        beyond the context, learned ones do not.
        """
        if not prompt:
            raise UserError("prompt: it is empty; give at least one token")
        wrong = next((token for token in prompt if not 0 <= token < self.vocabulary_size), None)
        if wrong is not None:
            raise UserError(
                f"prompt: token id {wrong} is outside {self.name}'s vocabulary 0..{self.vocabulary_size - 1}"
            )
        if getattr(self._config, "rope_parameters", None):
            overshoot = 0
        if self.context_limit is not None and len(prompt) + max_new_tokens + overshoot > self.context_limit:
            beyond = f" + {overshoot} drafted beyond them" if overshoot else ""
            most = self.context_limit - len(prompt) - overshoot
            instead = f"shorten the prompt or ask for at most {most}" if most > 0 else "shorten the prompt"
            raise UserError(
                f"prompt of {len(prompt)} + max_new_tokens {max_new_tokens}{beyond} exceed {self.name}'s context of "
                f"{self.context_limit}; {instead}"
            )


def graph_backend(model: PreTrainedModel, format: str, name: str, rounded: bool) -> "GraphBackend | None":
    """What computes `model` in `format` as a graph, `rounded` in 8 bits at most; None where torch can in its place.

    Raises UserError.
    """
    try:
        from dynatree.engine.graph import backend
    except ImportError as error:
        if format not in QUANTISED:
            return None
        raise UserError(f"dtype: {format} needs OpenVINO ({error}), which has no wheels for some machines") from error
    reason = backend.refusal(model, name)
    if reason is None:
        # A drafter's proposals are verified, so fewer bits cost nothing but agreement.
        made = backend.GraphBackend(model, format if format in QUANTISED or not rounded else "int8")
        if not rounded:
            # What a drafter's table reads: a graph that is made again for it takes a second or two.
            made.expose((model.config.num_hidden_layers,))
        return made
    if format in QUANTISED:
        raise UserError(f"dtype: {format} {reason}; take float32")
    return None


def fingerprint(model: nn.Module) -> str:
    """What tells a model apart, wherever it came from: shapes, and some values of each weight."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[torch.tensor(sampled(len(flat)), device=flat.device)]
        digest.update(f"{name} {tuple(weight.shape)} {json.dumps(some.double().tolist())}".encode())
    return digest.hexdigest()


def sampled(count: int) -> list[int]:
    """Which of so many values tell them apart: from the first to the last, evenly."""
    few = min(_SAMPLED, count)
    # In whole numbers: a float32 of torch's linspace is beyond the end of a large embedding.
    return [place * (count - 1) // max(1, few - 1) for place in range(few)]
