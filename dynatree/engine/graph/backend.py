"""One OpenVINO graph a forward, for CPUs: whatever the tree, a node's logits are autoregressive decoding's, to the bit.

Measured and explained in docs/exactness.md. A row's attention is its own, so that it has the same bits alone and among
others, of its request or of others.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dynatree.engine.backend import Begin, End, Feed, Output
from dynatree.engine.fusion import Fusion
from dynatree.engine.graph import gpt_neox, kernels, llama, parts
from dynatree.engine.graph.block_cache import BlockCache, Pool
from dynatree.engine.graph.compiled import MOST_ROWS, Columns, Given, Graph
from dynatree.engine.graph.parts import Size, States, Weights
from dynatree.tree import TokenTree

BUILDERS = (llama, gpt_neox)
# Those that attention is for, by their names.
_PROCESSORS = ("x86_64", "amd64")
# Tokens of a long text that one forward takes.
_PIECE = 256


def refusal(model: Any, name: str) -> str | None:
    """Why there is no graph of `model`, if there is none."""
    if platform.machine().lower() not in _PROCESSORS:
        return f"is for {_PROCESSORS[0]} processors; this is {platform.machine()}"
    builder = _builder(model)
    if builder is None:
        known = ", ".join(kind for builder in BUILDERS for kind in builder.TYPES)
        return f"is for {known}; {name} is {model.config.model_type}"
    if model.config.hidden_act != builder.ACTIVATION:
        return f"is not for {name}: its activation is {model.config.hidden_act}"
    # A layer with an adapter around it has another product than by its weight.
    layers = {type(part) for part in model.modules() if getattr(getattr(part, "weight", None), "ndim", 0) == 2}
    if others := sorted(kind.__name__ for kind in layers - {nn.Linear, nn.Embedding}):
        return f"is not for {name}: it has layers of other kinds, {', '.join(others)}"
    return None


def _blocks(feed: Feed) -> BlockCache:
    return cast(BlockCache, feed.cache)


def _parents(nodes: int, count: int, sees: Tensor | None) -> list[int]:
    """The parent of each of `count` nodes behind so many others: the last of those before it that it sees; -1: none.

    `sees` [count, nodes + count]; None: each sees all before it. A path's nodes stand in its order.
    """
    if sees is None:
        return [*range(nodes - 1, nodes + count - 1)]
    rows = enumerate(sees.tolist(), nodes)
    return [next((place for place in range(own - 1, -1, -1) if row[place]), -1) for own, row in rows]


def _parents_of(tree: TokenTree, nodes: Sequence[int] | None, count: int) -> list[int]:
    """The parent of each of the last `count` of `nodes`, by its place among them; -1: it is not among them."""
    if nodes is None:
        return tree.nodes.parents
    places = {node: place for place, node in enumerate(nodes)}
    return [places.get(tree.nodes.parents[node], -1) for node in nodes[-count:]]


def _total(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(used for used, _ in sizes), sum(held for _, held in sizes)


def _builder(model: Any) -> Any:
    return next((builder for builder in BUILDERS if model.config.model_type in builder.TYPES), None)


class GraphBackend:
    """`model`, of which there is a graph (`refusal`), in `format`: one of FORMATS."""

    def __init__(self, model: Any, format: str):
        config = model.config
        self.device = torch.device("cpu")
        self._model, self._builder, self.format = model, _builder(model), format
        self._embedding = model.get_input_embeddings()
        self._shape, self._layers = parts.shape(model), config.num_hidden_layers
        self._pool = Pool(self._layers, self._shape.groups, self._shape.size, across=kernels.kind() == kernels.OWN)
        self._graphs: dict[int | None, Graph] = {}
        # Requests that all graphs are prepared for, those that are made later, too.
        self._prepared = 0
        self._states = States()
        self._watchers: list[tuple[Begin, End]] = []
        # Asked here: later torch may keep to one thread, since a graph has the cores.
        self._threads = torch.get_num_threads()
        self._heads: list[Tensor] = []
        # Arrays: torch takes three times as long for a few of their rows.
        self._cos, self._sin = (np.empty((0, self._shape.turned), np.float32) for _ in range(2))

    def new_caches(self, count: int) -> list[BlockCache]:
        """Empty caches of `count` sequences, which one forward may be for."""
        self.begin(count)
        return [BlockCache(self._pool) for _ in range(count)]

    def begin(self, requests: int) -> None:
        """See `Backend`: graphs are made that have paid for themselves."""
        for graph in self._graphs.values():
            graph.begin(requests)

    def prepare(self, requests: int) -> None:
        """Have all graphs at once that forwards would pay for in time: what is timed is to be the same throughout."""
        self._prepared = requests
        for graph in self._graphs.values():
            graph.prepare(requests)

    def head_over(self, ids: Tensor) -> int:
        """A head for the token ids [v] alone, as `forward` takes it."""
        self._heads.append(ids)
        return len(self._heads) - 1

    def join(self, fusion: Fusion) -> None:
        """From now on join the embedding of each token to a state, or to zeros."""
        if self._states.fusion is not fusion:
            self._states = self._states._replace(fusion=fusion)
            self._graphs = {head: self._made(head, Weights(self.format, self._threads)) for head in self._graphs}

    def expose(self, layers: Sequence[int]) -> None:
        """Have graphs that give the states behind `layers`, too: made anew, of the same weights, where they do not."""
        if every := {*layers} - {*self._states.reads}:
            self._states = self._states._replace(reads=tuple(sorted(every.union(self._states.reads))))
            self._graphs = {head: self._made(head, graph.weights) for head, graph in self._graphs.items()}

    def forward(
        self, feeds: Sequence[Feed], head: int | None = None, reads: Sequence[int] = (), lent: bool = False
    ) -> list[Output]:
        """What comes of each of `feeds`; `head`: one of `head_over`, in place of the model's own. `lent`: as in
        `Backend`."""
        self.expose(reads)
        for begin, _ in self._watchers:
            begin()
        found = self._together(feeds, self._graph(head), self._columns(reads), lent)
        for _, end in self._watchers:
            end(lambda: _total([_blocks(feed).sizes() for feed in feeds]))
        return found

    @contextmanager
    def watched(self, begin: Begin, end: End, head: int | None = None) -> Iterator[None]:
        """Within, `begin` and `end` are called around each forward."""
        self._watchers.append((begin, end))
        try:
            yield
        finally:
            self._watchers.remove((begin, end))

    def weights(self, head: int | None = None) -> dict[Any, int]:
        """Bytes of the embedding, and of the weights of the graph with the model's own head, or with `head`."""
        codes, embedding = self._graph(head).weights, self._embedding.weight
        return {embedding.data_ptr(): embedding.nbytes, id(codes): codes.bytes}

    def score(self, tokens: Tensor, last: int) -> Tensor:
        """Logits [last, vocabulary] of the `last` tokens of `tokens` [n]."""
        (cache,) = self.new_caches(1)
        return self._piecewise(Feed(tokens, cache), last, self._graph(None), None).logits

    def _columns(self, reads: Sequence[int]) -> Columns:
        """Of the states behind all layers that are exposed those behind `reads`."""
        if not reads:
            return None
        places, width = [self._states.reads.index(layer) for layer in reads], self._shape.width
        begin, end = places[0], places[-1] + 1
        if places == [*range(begin, end)]:
            return slice(begin * width, end * width)
        return np.concatenate([np.arange(place * width, (place + 1) * width) for place in places])

    def _graph(self, head: int | None) -> Graph:
        if head not in self._graphs:
            self._graphs[head] = self._made(head, Weights(self.format, self._threads))
        return self._graphs[head]

    def _made(self, head: int | None, weights: Weights) -> Graph:
        weight = self._model.get_output_embeddings().weight.detach()
        rows = weight if head is None else weight[self._heads[head]]

        # Not this object, which holds the graph: memory would wait for a search for cycles.
        builder, model, states = self._builder, self._model, self._states

        def make(size: Size) -> ov.Model:
            found: ov.Model = builder.graph(model, weights.again(), rows, size, states)
            return found

        fed = self._shape._replace(width=self._states.fed(self._shape.width))
        made = Graph(make, weights, fed, self._pool, self._threads)
        if self._prepared:
            made.prepare(self._prepared)
        return made

    def _together(self, feeds: Sequence[Feed], graph: Graph, states: Columns, lent: bool) -> list[Output]:
        """What comes of each of `feeds`, of short ones in one forward."""
        if len(feeds) == 1 and len(feeds[0].tokens) <= _PIECE:
            # Most often, between two steps of a text.
            return self._infer(feeds, graph, states, lent=lent)
        found: dict[int, Output] = {}
        together: list[list[int]] = [[]]
        rows = 0
        for place, feed in enumerate(feeds):
            count = len(feed.tokens)
            if count > _PIECE and feed.mask is None and feed.positions is None and feed.tree is None:
                found[place] = self._piecewise(feed, feed.wanted, graph, states)
                continue
            if together[-1] and rows + count > MOST_ROWS:
                together.append([])
                rows = 0
            together[-1].append(place)
            rows += count
        groups = [places for places in together if places]
        # Else the next of them would write over it.
        lent = lent and len(groups) == 1 and not found
        for places in groups:
            outputs = self._infer([feeds[place] for place in places], graph, states, lent=lent)
            found |= zip(places, outputs, strict=True)
        return [found[place] for place in range(len(feeds))]

    def _piecewise(self, feed: Feed, wanted: int, graph: Graph, states: Columns) -> Output:
        """What comes of further text, logits of its last `wanted` tokens."""
        tokens, logits, behind = feed.tokens, list[Tensor](), list[Tensor]()
        for begin in range(0, len(tokens), _PIECE):
            end = min(begin + _PIECE, len(tokens))
            joined = None if feed.states is None else feed.states[begin:end]
            # Of the whole text the last ones are wanted.
            rows = max(0, end - max(begin, len(tokens) - wanted))
            piece = Feed(tokens[begin:end], feed.cache, states=joined)
            ((logits_of, states_of),) = self._infer([piece], graph, states, max(1, rows))
            logits += [logits_of] if rows else []
            behind.append(states_of)
        return Output(torch.cat(logits), torch.cat(behind))

    def _infer(
        self, feeds: Sequence[Feed], graph: Graph, states: Columns, wanted: int | None = None, lent: bool = False
    ) -> list[Output]:
        """What comes of each of `feeds`, in one forward; logits of the last `wanted`, or as they say."""
        return [Output(*one) for one in graph.infer([self._given(feed, wanted) for feed in feeds], states, lent)]

    def _given(self, feed: Feed, wanted: int | None) -> Given:
        """What a graph takes of `feed`, for which the cache makes room."""
        tokens, _, positions, mask, _, states, tree, nodes = feed
        cache, count = _blocks(feed), len(feed.tokens)
        begin = cache.length
        # More than a tree is deep.
        self._know(begin + count if positions is None else int(positions.max()) + 1)
        embedded = self._embedded(tokens)
        if self._states.fusion is not None:
            joined = np.zeros_like(embedded) if states is None else states.float().numpy()
            embedded = np.concatenate([embedded, joined], 1)
        places: Any = slice(begin, begin + count) if positions is None else positions.numpy()
        if tree is not None:
            new = range(count) if nodes is None else nodes[-count:]
            root = feed.root_at(cache.committed)
            seats, further = cache.append_nodes(_parents_of(tree, nodes, count))
            places = [root + tree.nodes.depths[node] for node in new]
        elif mask is None and positions is None:
            seats, further = cache.append_text(count)
        else:
            before = begin - cache.committed
            sees = None if mask is None else mask[:, cache.committed :]
            seats, further = cache.append_nodes(_parents(before, count, sees))
        return Given(embedded, self._cos[places], self._sin[places], seats, further, wanted or feed.wanted)

    def _embedded(self, tokens: Tensor) -> NDArray[np.float32]:
        """[n, width] of `tokens` [n]. By numpy where it can: between forwards torch takes five times as long."""
        # It is asked for each time, and not held: a drafter may take its target's, and gives its own back.
        weight = self._embedding.weight.detach()
        plain = weight.dtype == torch.float32
        found: NDArray[np.float32] = (
            weight.numpy()[tokens.numpy()] if plain else F.embedding(tokens, weight).float().numpy()
        )
        return found

    def _know(self, count: int) -> None:
        """Have cos and sin of so many positions, as the model makes them."""
        if count <= len(self._cos):
            return
        places = torch.arange(max(count, 2 * len(self._cos), 512))[None]
        cos, sin = self._model.base_model.rotary_emb(torch.zeros(1, 1, dtype=torch.float32), places)
        self._cos, self._sin = (part[0].float().contiguous().numpy() for part in (cos, sin))
