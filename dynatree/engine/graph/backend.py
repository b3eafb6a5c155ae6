"""One OpenVINO graph a forward, for CPUs: whatever the tree, a node's logits are autoregressive decoding's, to the bit.

Measured and explained in docs/exactness.md. A request's attention is its own, so that alone and among others it has the
same bits, too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import openvino as ov
import torch
from torch import Tensor, nn

from dynatree.engine.backend import NO_STATES, Begin, End, Feed, Output
from dynatree.engine.fusion import Fusion
from dynatree.engine.graph import gpt_neox, llama, parts
from dynatree.engine.graph.block_cache import BLOCK, MOST, BlockCache
from dynatree.engine.graph.compiled import Given, Graph
from dynatree.engine.graph.parts import States, Weights
from dynatree.errors import UserError

BUILDERS = (llama, gpt_neox)


def refusal(model: Any, name: str) -> str | None:
    """Why there is no graph of `model`, if there is none."""
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
        self._shape, self._layers = parts.shape(model), config.num_hidden_layers
        self._graphs: dict[int | None, Graph] = {}
        self._states = States()
        self._watchers: list[tuple[Begin, End]] = []
        # Asked here: later torch may keep to one thread, since a graph has the cores.
        self._threads = torch.get_num_threads()
        self._heads: list[Tensor] = []
        self._cos, self._sin = (torch.empty(0, self._shape.turned) for _ in range(2))

    def new_caches(self, count: int) -> list[BlockCache]:
        """Empty caches of `count` sequences, which one forward may be for."""
        self.begin(count)
        return [BlockCache(self._layers, self._shape.groups, self._shape.size) for _ in range(count)]

    def begin(self, requests: int) -> None:
        """See `Backend`: graphs are made that have paid for themselves."""
        for graph in self._graphs.values():
            graph.begin(requests)

    def prepare(self, requests: int) -> None:
        """Have all graphs at once that forwards would pay for in time: what is timed is to be the same throughout."""
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
            self._graphs = {head: self._made(head, Weights(self.format)) for head in self._graphs}

    def expose(self, layers: Sequence[int]) -> None:
        """Have graphs that give the states behind `layers`, too: made anew, of the same weights, where they do not."""
        if every := {*layers} - {*self._states.reads}:
            self._states = self._states._replace(reads=tuple(sorted(every.union(self._states.reads))))
            self._graphs = {head: self._made(head, graph.weights) for head, graph in self._graphs.items()}

    def forward(self, feeds: Sequence[Feed], head: int | None = None, reads: Sequence[int] = ()) -> list[Output]:
        """What comes of each of `feeds`; `head`: one of `head_over`, in place of the model's own."""
        self.expose(reads)
        for begin, _ in self._watchers:
            begin()
        found = self._together(feeds, self._graph(head))
        if tuple(reads) != self._states.reads:
            found = [Output(output.logits, self._of(output.states, reads)) for output in found]
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
        codes, embedding = self._graph(head).weights, self._model.get_input_embeddings().weight
        return {embedding.data_ptr(): embedding.nbytes, id(codes): codes.bytes}

    def score(self, tokens: Tensor, last: int) -> Tensor:
        """Logits [last, vocabulary] of the `last` tokens of `tokens` [n]."""
        (cache,) = self.new_caches(1)
        return self._continue(Feed(tokens, cache), last, self._graph(None)).logits

    def _of(self, states: Tensor, reads: Sequence[int]) -> Tensor:
        """Those behind the layers `reads` of `states` [n, ...], which are behind all that are exposed."""
        places = [self._states.reads.index(layer) for layer in reads]
        return states.unflatten(1, (-1, self._shape.width))[:, places].flatten(1) if places else NO_STATES

    def _graph(self, head: int | None) -> Graph:
        if head not in self._graphs:
            self._graphs[head] = self._made(head, Weights(self.format))
        return self._graphs[head]

    def _made(self, head: int | None, weights: Weights) -> Graph:
        weight = self._model.get_output_embeddings().weight.detach()
        rows = weight if head is None else weight[self._heads[head]]

        def make(requests: int) -> ov.Model:
            return self._builder.graph(self._model, weights.again(), rows, requests, self._states)

        fed = self._shape._replace(width=self._states.fed(self._shape.width))
        return Graph(make, weights, fed, self._layers, self._threads)

    def _together(self, feeds: Sequence[Feed], graph: Graph) -> list[Output]:
        """What comes of each of `feeds`, of several in one forward where that is faster."""
        found: list[Output | None] = [None] * len(feeds)
        waiting: list[int] = []
        for place, feed in enumerate(feeds):
            cache = _blocks(feed)
            cache.settle()
            beyond = cache.length + len(feed.tokens) - cache.done > BLOCK
            if len(feeds) == 1 or (beyond and feed.mask is None and feed.positions is None):
                found[place] = self._one(feed, graph)
            else:
                waiting.append(place)
        given = [self._tokens(feeds[place]) for place in waiting]
        plain = [feeds[place].mask is None and feeds[place].positions is None for place in waiting]
        for group in graph.groups(given):
            now, committed = [given[index] for index in group], [plain[index] for index in group]
            for index, output in zip(group, self._infer(now, committed, graph), strict=True):
                found[waiting[index]] = output
        return [output for output in found if output is not None]

    def _one(self, feed: Feed, graph: Graph) -> Output:
        if feed.mask is None and feed.positions is None:
            return self._continue(feed, 1 if feed.last_only else len(feed.tokens), graph)
        return self._infer([self._tokens(feed)], [False], graph)[0]

    def _continue(self, feed: Feed, wanted: int, graph: Graph) -> Output:
        """What comes of further text, logits of its last `wanted` tokens, in pieces that end with a block."""
        tokens, cache, begin = feed.tokens, _blocks(feed), 0
        logits: list[Tensor] = []
        states: list[Tensor] = []
        while begin < len(tokens):
            cache.settle()
            count = min(len(tokens) - begin, BLOCK - cache.length % BLOCK)
            # Of the whole text the last ones are wanted.
            rows = max(0, min(count, wanted - (len(tokens) - begin - count)))
            joined = None if feed.states is None else feed.states[begin : begin + count]
            piece = Feed(tokens[begin : begin + count], cache, states=joined)
            (output,) = self._infer([self._tokens(piece)._replace(wanted=max(1, rows))], [True], graph)
            logits += [output.logits] if rows else []
            states.append(output.states)
            begin += count
        return output if len(states) == 1 else Output(torch.cat(logits), torch.cat(states))

    def _tokens(self, feed: Feed) -> Given:
        """What a graph takes of tokens that do not pass the end of the current block."""
        tokens, _, positions, mask, last_only, states = feed
        cache = _blocks(feed)
        cache.settle()
        begin = cache.length
        if len(tokens) > cache.nodes_left:
            nodes = begin - cache.committed + len(tokens)
            raise UserError(f"a tree of {nodes} nodes; {self.format} takes at most {MOST - BLOCK}: lower the budget")
        # In decoding no position is beyond the end of the current block.
        self._know(max(cache.done + BLOCK, begin + len(tokens)))
        # Asked for each time: a drafter may take its target's.
        embedded = self._model.get_input_embeddings()(tokens).detach().float()
        if self._states.fusion is not None:
            embedded = torch.cat([embedded, torch.zeros_like(embedded) if states is None else states.float()], 1)
        # All see the full blocks.
        sees, each_other = (None, None) if mask is None else (mask[:, cache.done : begin], mask[:, begin:])
        wanted = 1 if last_only else len(tokens)
        places = slice(begin, begin + len(tokens)) if positions is None else positions
        return Given(cache, embedded, self._cos[places], self._sin[places], sees, each_other, wanted)

    def _infer(self, given: Sequence[Given], committed: Sequence[bool], graph: Graph) -> list[Output]:
        """What comes of each of `given`; keys and values go into the caches, as nodes or `committed`."""
        found = graph.infer(given)
        for one, keeps, of in zip(given, committed, found, strict=True):
            one.cache.append(of.keys, of.values, keeps)
        return [Output(of.logits, of.states) for of in found]

    def _know(self, count: int) -> None:
        """Have cos and sin of so many positions, as the model makes them."""
        if count <= len(self._cos):
            return
        places = torch.arange(max(count, 2 * len(self._cos), 512))[None]
        cos, sin = self._model.base_model.rotary_emb(torch.zeros(1, 1, dtype=torch.float32), places)
        self._cos, self._sin = cos[0].float().contiguous(), sin[0].float().contiguous()
