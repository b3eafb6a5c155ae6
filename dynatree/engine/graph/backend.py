"""One OpenVINO graph a forward, for CPUs: whatever the tree, a node's logits are those of plain decoding, to the bit.

Measured and explained in docs/exactness.md. A request's attention is its own, so that alone and among others it has the
same bits, too.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynatree.engine.backend import Feed
from dynatree.engine.graph import gpt_neox, llama, parts
from dynatree.engine.graph.block_cache import BLOCK, BlockCache
from dynatree.engine.graph.compiled import Given, Graph
from dynatree.engine.graph.parts import Weights
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
        self._graphs: dict[int | None, Graph] = {}
        # Asked here: later torch may keep to one thread, since a graph has the cores.
        self._threads = torch.get_num_threads()
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

    def _graph(self, head: int | None) -> Graph:
        if head not in self._graphs:
            weight = self._model.get_output_embeddings().weight.detach()
            rows = weight if head is None else weight[self._heads[head]]
            weights = Weights(self._format)
            graph = self._builder.graph(self._model, weights, rows)
            self._graphs[head] = Graph(graph, weights, self._shape, self._layers, self._threads)
        return self._graphs[head]

    def _one(self, feed: Feed, graph: Graph) -> Tensor:
        tokens, cache, positions, mask, last_only = feed
        assert isinstance(cache, BlockCache)
        wanted = 1 if last_only else len(tokens)
        if mask is None and positions is None:
            return self._continue(tokens, cache, wanted, graph)
        cache.settle()
        begin = cache.length
        positions = torch.arange(begin, begin + len(tokens)) if positions is None else positions
        # All see the full blocks.
        sees, each_other = (None, None) if mask is None else (mask[:, cache.done : begin], mask[:, begin:])
        return self._step(tokens, cache, positions, sees, each_other, wanted, graph, committed=False)

    def _continue(self, tokens: Tensor, cache: BlockCache, wanted: int, graph: Graph) -> Tensor:
        """Logits of the last `wanted` of further text `tokens` [n], in pieces that end with a block."""
        found, begin = [], 0
        while begin < len(tokens):
            cache.settle()
            start = cache.length
            count = min(len(tokens) - begin, BLOCK - start % BLOCK)
            # Of the whole text the last ones are wanted.
            rows = max(0, min(count, wanted - (len(tokens) - begin - count)))
            piece, positions = tokens[begin : begin + count], torch.arange(start, start + count)
            logits = self._step(piece, cache, positions, None, None, max(1, rows), graph, committed=True)
            found += [logits] if rows else []
            begin += count
        return found[0] if len(found) == 1 else torch.cat(found)

    def _step(
        self,
        tokens: Tensor,
        cache: BlockCache,
        positions: Tensor,
        sees: Tensor | None,
        each_other: Tensor | None,
        wanted: int,
        graph: Graph,
        committed: bool,
    ) -> Tensor:
        """Logits of the last `wanted` of `tokens` [n] by one forward; their keys and values go into `cache`."""
        if cache.block[0].shape[2] + len(tokens) > MOST:
            nodes = cache.length - cache.committed + len(tokens)
            raise UserError(f"a tree of {nodes} nodes; {self._format} takes at most {MOST - BLOCK}: lower the budget")
        # No position is beyond the end of the current block.
        self._know(cache.done + BLOCK)
        rotations = self._cos[positions], self._sin[positions]
        given = Given(self._embedding[tokens], *rotations, cache.length - cache.done, sees, each_other)
        logits, keys, values = graph.infer(given, cache, wanted)
        cache.append(keys, values, committed)
        return logits

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
