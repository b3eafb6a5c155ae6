"""One OpenVINO graph a forward, for CPUs: whatever the tree, a node's logits are those of plain decoding, to the bit.

Measured and explained in docs/exactness.md. A request's attention is its own, so that alone and among others it has the
same bits, too.
"""

from collections.abc import Sequence
from typing import Any

import openvino as ov
import torch
import torch.nn.functional as F
from torch import Tensor

from dynatree.engine.backend import Feed
from dynatree.engine.graph import gpt_neox, llama, parts
from dynatree.engine.graph.block_cache import BLOCK, EXTRA, BlockCache
from dynatree.engine.graph.codes import GROUP
from dynatree.errors import UserError

BUILDERS = (llama, gpt_neox)
# Products longer than this are summed in parts, whose ends depend on the length.
MOST = 512


class GraphBackend:
    """`model` in `format` ("int8" or "int4"). Raises UserError for an architecture without a builder."""

    def __init__(self, model: Any, format: str, name: str):
        config = model.config
        found = [builder for builder in BUILDERS if config.model_type in builder.TYPES]
        if not found:
            known = ", ".join(kind for builder in BUILDERS for kind in builder.TYPES)
            raise UserError(f"dtype: {format} is for {known}; {name} is {config.model_type}, take float32")
        if config.hidden_act != found[0].ACTIVATION:
            raise UserError(f"dtype: {format} is not for {name}: its activation is {config.hidden_act}; take float32")
        self.device = torch.device("cpu")
        self._model, self._builder, self._format = model, found[0], format
        self._shape, self._layers = parts.shape(config), config.num_hidden_layers
        self._embedding = model.get_input_embeddings().weight.detach().float()
        self._compiled: dict[int | None, _Compiled] = {}
        self._heads: list[Tensor] = []
        self._cos, self._sin = (torch.empty(0, 1, self._shape.size) for _ in range(2))

    def new_caches(self, count: int) -> list[BlockCache]:
        """Empty caches of `count` sequences."""
        return [BlockCache(self._layers, self._shape.groups, self._shape.size) for _ in range(count)]

    def head_over(self, ids: Tensor) -> int:
        """A head for the token ids [v] alone, as `forward` takes it."""
        self._heads.append(ids)
        return len(self._heads) - 1

    def forward(self, feeds: Sequence[Feed], head: int | None = None) -> list[Tensor]:
        """Logits [n or 1, v] of each of `feeds`; `head`: one of `head_over`, in place of the model's own."""
        return [self._one(feed, self._graph(head)) for feed in feeds]

    def score(self, tokens: Tensor, last: int) -> Tensor:
        """Logits [last, vocabulary] of the `last` tokens of `tokens` [n]."""
        (cache,) = self.new_caches(1)
        return self._continue(tokens, cache, last, self._graph(None))

    def _graph(self, head: int | None) -> "_Compiled":
        if head not in self._compiled:
            weight = self._model.get_output_embeddings().weight.detach()
            rows = weight if head is None else weight[self._heads[head]]
            self._compiled[head] = _Compiled(self._builder, self._model, self._format, rows, self._layers)
        return self._compiled[head]

    def _one(self, feed: Feed, graph: "_Compiled") -> Tensor:
        tokens, cache, positions, mask, last_only = feed
        assert isinstance(cache, BlockCache)
        wanted = 1 if last_only else len(tokens)
        if mask is None and positions is None:
            return self._continue(tokens, cache, wanted, graph)
        positions = torch.arange(cache.length, cache.length + len(tokens)) if positions is None else positions
        if mask is None:
            mask = torch.ones(len(tokens), cache.length + len(tokens), dtype=torch.bool).tril(cache.length)
        return self._step(tokens, cache, positions, mask, wanted, graph, committed=False)

    def _continue(self, tokens: Tensor, cache: BlockCache, wanted: int, graph: "_Compiled") -> Tensor:
        """Logits of the last `wanted` of further text `tokens` [n], in pieces that end with a block."""
        found, begin = [], 0
        while begin < len(tokens):
            start = cache.length
            count = min(len(tokens) - begin, BLOCK - start % BLOCK)
            # Of the whole text the last ones are wanted.
            rows = max(0, min(count, wanted - (len(tokens) - begin - count)))
            mask = torch.ones(count, start + count, dtype=torch.bool).tril(start)
            piece = tokens[begin : begin + count]
            positions = torch.arange(start, start + count)
            logits = self._step(piece, cache, positions, mask, max(1, rows), graph, committed=True)
            found += [logits] if rows else []
            begin += count
        return found[0] if len(found) == 1 else torch.cat(found)

    def _step(
        self,
        tokens: Tensor,
        cache: BlockCache,
        positions: Tensor,
        mask: Tensor,
        wanted: int,
        graph: "_Compiled",
        committed: bool,
    ) -> Tensor:
        """Logits of the last `wanted` of `tokens` [n] by one forward; their keys and values go into `cache`."""
        cache.settle()
        if len(tokens) == 1 and self._shape.share == 1:
            # A product over a single row takes another kernel, with another order of sums: there it goes in twice.
            twice = torch.tensor([0, 0])
            mask = F.pad(mask[twice], (0, 1))
            logits, keys, values = self._infer(tokens[twice], cache, positions[twice], mask, 2, graph)
            logits, keys, values = logits[:1], keys[:, :, :1], values[:, :, :1]
        else:
            logits, keys, values = self._infer(tokens, cache, positions, mask, wanted, graph)
        cache.append(keys, values, committed)
        return logits

    def _infer(
        self, tokens: Tensor, cache: BlockCache, positions: Tensor, mask: Tensor, wanted: int, graph: "_Compiled"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the last `wanted` of `tokens` [n], and their keys and values; `mask` as in `Feed`."""
        n, length = len(tokens), cache.length
        full, nodes = cache.full[0].shape[2], length - cache.committed
        if BLOCK + nodes + n > MOST:
            raise UserError(
                f"a tree of {nodes + n} nodes; {self._format} takes at most {MOST - BLOCK}: lower the budget"
            )
        laid = torch.full((n, full + BLOCK + nodes + n), -torch.inf)
        # Slots of the cache to columns of the graph: full blocks, the current one, nodes and new ones.
        for slots, columns in (
            (slice(0, cache.done), slice(0, cache.done)),
            (slice(cache.done, cache.committed), slice(full, full + cache.committed - cache.done)),
            (slice(cache.committed, length + n), slice(full + BLOCK, full + BLOCK + nodes + n)),
        ):
            laid[:, columns].masked_fill_(mask[:, slots], 0)
        self._know(int(positions.max()) + 1)
        given = (self._embedding[tokens], self._cos[positions], self._sin[positions], laid)
        return graph.infer(given, cache, torch.arange(n - wanted, n))

    def _know(self, count: int) -> None:
        """Have cos and sin of so many positions, as the model makes them; rotating is adding the halves crosswise."""
        if count <= len(self._cos):
            return
        places = torch.arange(max(count, 2 * len(self._cos), 512))[None]
        cos, sin = self._model.base_model.rotary_emb(torch.zeros(1, 1, dtype=torch.float32), places)
        half, rest = cos.shape[-1] // 2, self._shape.size - cos.shape[-1]
        sign = torch.cat([-torch.ones(half), torch.ones(half)])
        self._cos = F.pad(cos[0].float(), (0, rest), value=1.0)[:, None].contiguous()
        self._sin = F.pad(sin[0].float() * sign, (0, rest))[:, None].contiguous()


class _Compiled:
    """A graph, compiled for this processor, and what its inputs point into."""

    def __init__(self, builder: Any, model: Any, format: str, head: Tensor, layers: int):
        self._weights = parts.Weights(format)
        settings = {
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP),
        }
        graph = builder.graph(model, self._weights, head)
        self._request = ov.Core().compile_model(graph, "CPU", settings).create_infer_request()
        self._layers = layers
        self._first = len(graph.inputs) - 4 * layers
        self._bound: tuple[BlockCache, int] | None = None
        self._held: list[Any] = []
        self._held_past: list[Any] = []

    def infer(self, given: Sequence[Tensor], cache: BlockCache, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [w, v], and keys and values [layers, groups, n, size] of the new tokens."""
        self._bind(cache)
        n, groups = len(given[0]), cache.full[0].shape[1]
        ones = torch.zeros(groups, n, EXTRA)
        ones[..., 0] = 1
        # OpenVINO does not keep what its tensors point into.
        self._held = [*given, ones, torch.tensor([cache.full[0].shape[2]]), wanted]
        for place, tensor in enumerate(self._held):
            self._request.set_input_tensor(place, ov.Tensor(tensor.numpy(), shared_memory=True))
        self._request.infer()
        outputs = [torch.from_numpy(self._request.get_output_tensor(k).data) for k in range(1 + 2 * self._layers)]
        # Copies: the next forward writes into the same memory.
        return outputs[0].clone(), torch.stack(outputs[1::2]), torch.stack(outputs[2::2])

    def _bind(self, cache: BlockCache) -> None:
        """Let the layers' inputs point into `cache`."""
        held = cache.pending
        if held is None and self._bound is not None and self._bound[0] is cache and self._bound[1] == cache.version:
            return
        current = cache.block
        if held is not None:
            current = tuple(torch.cat(pair, 2) for pair in zip(cache.block, held, strict=True))  # type: ignore[assignment]
        self._held_past = [cache.full, current]
        self._bound = (cache, cache.version) if held is None else None
        for layer in range(self._layers):
            for place, tensor in enumerate((*cache.full, *current)):
                at = self._first + 4 * layer + place
                self._request.set_input_tensor(at, ov.Tensor(tensor[layer].numpy(), shared_memory=True))
