"""Forwards by one graph: to the bit the same whatever the tree, the batch and the chunks of a prefill."""

import copy
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from dynatree import DynaTree, decoding
from dynatree.engine.backend import Feed
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.backend import EagerBackend
from dynatree.engine.graph import block_cache, codes, compiled, kernels, parts
from dynatree.engine.graph.backend import GraphBackend
from dynatree.engine.graph.block_cache import BLOCK, BlockCache, Pool, Seat
from dynatree.engine.in_transformers import computed_by
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions
from dynatree.generation.prefix_cache import PrefixCache
from dynatree.measuring import forward_times
from tests import models

VOCABULARY, CONTEXT = 97, 1024
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
GATED = {**SHAPE, "intermediate_size": 96, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GATED),
    "qwen2": lambda: Qwen2Config(**GATED, use_sliding_window=False, tie_word_embeddings=True),
    # Heads that together are wider than the model, as in its smallest.
    "qwen3": lambda: Qwen3Config(**GATED, head_dim=32, use_sliding_window=False, tie_word_embeddings=True),
    "gpt_neox": lambda: GPTNeoXConfig(**SHAPE, vocab_size=VOCABULARY, intermediate_size=96, rotary_pct=0.25),
    "gpt_neox in turn": lambda: GPTNeoXConfig(
        **SHAPE, vocab_size=VOCABULARY, intermediate_size=96, rotary_pct=1.0, use_parallel_residual=False
    ),
}
# Both kinds of layers in every format; those that differ from them by biases or order in one.
COMBINED = [(a, f) for a in CONFIGS for f in parts.FORMATS if a in ("llama", "gpt_neox") or f == "int8"]
COMBINED += [("qwen3", "float32")]
TEXT = torch.randint(VOCABULARY, (CONTEXT,), generator=torch.Generator().manual_seed(3))


@cache
def model(architecture: str) -> PreTrainedModel:
    torch.manual_seed(1)
    made = AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.25) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) / 10)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made.eval()


@cache
def graph(architecture: str, format: str) -> GraphBackend:
    """With graphs of their own for some widths, which models as small as these do not have."""
    made = GraphBackend(model(architecture), format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "STATIC_FROM", 0)
        prefilled(made, 1)  # it is made at the first forward
    made.prepare(8)
    return made


def prefilled(made: GraphBackend, count: int, chunk: int = CONTEXT) -> tuple[BlockCache, Tensor]:
    """A cache with the first `count` tokens of the text, and the logits after them."""
    (cache,) = made.new_caches(1)
    for begin in range(0, count, chunk):
        ((logits, _),) = made.forward([Feed(TEXT[begin : min(begin + chunk, count)], cache, last=1)])
    return cache, logits


def held(cache: BlockCache) -> list[Tensor]:
    """Keys and values [layers, heads, committed, size] of its text."""
    parts = (cache._pool.keys, cache._pool.values)
    rows = [torch.from_numpy(part[:, cache._text.blocks]).transpose(1, 2).flatten(2, 3) for part in parts]
    return [part[:, :, : cache.committed] for part in rows]


def random_tree(nodes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Depths [n] and ancestors [n, n] of a tree."""
    chance, parents, depths = random.Random(seed), [-1], [0]
    for node in range(1, nodes):
        parents.append(chance.randrange(node))
        depths.append(depths[parents[-1]] + 1)
    ancestors = torch.eye(nodes, dtype=torch.bool)
    for node in range(1, nodes):
        ancestors[node] |= ancestors[parents[node]]
    return torch.tensor(depths), ancestors


def one_by_one(made: GraphBackend, committed: int, path: Tensor) -> tuple[BlockCache, Tensor]:
    """Logits [n, v] of the tokens `path` [n] behind so many others, each decoded by itself, and the cache of them."""
    cache, _ = prefilled(made, committed)
    return cache, torch.cat([made.forward([Feed(token[None], cache)])[0].logits for token in path])


def equal_nodes(made: GraphBackend, committed: int, nodes: int, seed: int) -> tuple[int, int]:
    """How many nodes of a tree have the bits of their path decoded token by token, and how many were looked at."""
    cache, _ = prefilled(made, committed)
    depths, ancestors = random_tree(nodes, seed)
    tokens = TEXT[-nodes:]
    mask = torch.cat([torch.ones(nodes, committed, dtype=torch.bool), ancestors], 1)
    ((tree, _),) = made.forward([Feed(tokens, cache, depths + committed, mask)])
    chosen = random.Random(seed).sample(range(nodes), min(nodes, 6))
    equal = 0
    for node in chosen:
        _, logits = one_by_one(made, committed, tokens[ancestors[node]])
        equal += torch.equal(logits[-1], tree[node])
    return equal, len(chosen)


def equal_leaves(made: GraphBackend, committed: int, leaves: int, behind: int) -> bool:
    """Whether so many siblings, `behind` so many nodes in a row, have the bits of their paths token by token."""
    cache, _ = prefilled(made, committed)
    count = behind + leaves
    mask = torch.ones(count, committed + count, dtype=torch.bool).tril(committed)
    mask[behind:, committed + behind :] = torch.eye(leaves, dtype=torch.bool)
    positions, tokens = committed + torch.arange(count).clamp(max=behind), TEXT[-count:]
    ((tree, _),) = made.forward([Feed(tokens, cache, positions, mask)])
    found = []
    for leaf in {behind, count - 1}:
        _, logits = one_by_one(made, committed, tokens[[*range(behind), leaf]])
        found.append(torch.equal(logits[-1], tree[leaf]))
    return all(found)


@pytest.mark.parametrize(("architecture", "format"), COMBINED)
def test_a_leaf_has_the_bits_of_its_path(architecture: str, format: str) -> None:
    """Guards rows that read themselves from nowhere: around ends of blocks and segments, few and many."""
    made = graph(architecture, format)
    for committed in (1, 30, 31, 32, 127, 128, 300):
        for leaves, behind in ((2, 0), (3, 1), (8, 1), (5, 4)):
            assert equal_leaves(made, committed, leaves, behind), (committed, leaves, behind)
    assert equal_leaves(made, 250, 80, 2)


def fed(made: GraphBackend, cache: BlockCache, parents: list[int], first: int, last: int) -> Tensor:
    """Logits of the nodes from `first` to `last`, of which `parents` has those of all; those before are in `cache`."""
    sees = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        sees[node] |= sees[parent] if parent >= 0 else False
    mask = torch.cat([torch.ones(last - first, cache.committed, dtype=torch.bool), sees[first:last, :last]], 1)
    depths = sees.sum(1)[first:last] - 1
    return made.forward([Feed(TEXT[-8:][first:last], cache, cache.committed + depths, mask)])[0].logits


@pytest.mark.parametrize(("architecture", "format"), COMBINED)
def test_what_comes_behind_a_leaf_has_the_bits_of_its_path(architecture: str, format: str) -> None:
    """Guards leaves that get children in a later forward, as a drafter's do, and texts that end with one."""
    made = graph(architecture, format)
    for committed in (30, 126, 200):
        cache, _ = prefilled(made, committed)
        # A root with three children, then two children of the last, then one of each of these.
        parents = [-1, 0, 0, 0, 3, 3, 4, 5]
        levels = torch.cat([fed(made, cache, parents, *level) for level in ((0, 4), (4, 6), (6, 8))])
        for path in ([0, 2], [0, 3, 4, 6], [0, 3, 5, 7]):
            _, logits = one_by_one(made, committed, TEXT[-8:][path])
            assert torch.equal(logits, levels[path]), (committed, path)
        # The text goes on behind a leaf.
        cache.crop(committed + 4)
        cache.keep(committed, torch.tensor([0, 2]))
        alone, _ = one_by_one(made, committed, TEXT[-8:][[0, 2]])
        mine, theirs = (made.forward([Feed(TEXT[:40], one)])[0].logits for one in (cache, alone))
        assert torch.equal(mine, theirs), committed


def test_leaves_without_places_of_their_own_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the test above: all siblings write and read one place."""
    made, sit = graph("llama", "float32"), compiled._Request._sit
    if not made._pool.across:
        pytest.skip("OpenVINO's operation knows no such leaves")
    monkeypatch.setattr(
        compiled._Request, "_sit", lambda self, seats: sit(self, [seat._replace(own=None) for seat in seats])
    )
    assert not equal_leaves(made, 30, 5, 1)


@pytest.mark.parametrize(("architecture", "format"), COMBINED)
def test_a_node_has_the_bits_of_its_path(architecture: str, format: str) -> None:
    """Guards the promise: trees of any shape, before and behind the ends of blocks, near them and far."""
    made = graph(architecture, format)
    for seed, (committed, nodes) in enumerate(
        [
            (1, 9),
            (5, 40),
            (60, 12),
            (200, 64),
            (250, 30),
            (254, 5),
            (255, 1),
            (256, 12),
            (300, 33),
            (515, 128),
            (600, 300),
            (800, 8),
        ]
    ):
        equal, looked_at = equal_nodes(made, committed, nodes, seed)
        assert equal == looked_at, committed


@pytest.mark.parametrize(("architecture", "format"), COMBINED)
def test_two_threads_leave_the_bits_alone(monkeypatch: pytest.MonkeyPatch, architecture: str, format: str) -> None:
    """Guards the promise where sums could be cut in parts: what else is tested here has one thread."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    made = GraphBackend(model(architecture), format)
    for prepared in (False, True):
        for seed, (committed, nodes) in enumerate([(5, 40), (255, 1), (300, 33), (515, 128)]):
            equal, looked_at = equal_nodes(made, committed, nodes, seed)
            assert equal == looked_at, (prepared, committed)
        made.prepare(2)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_prefill_has_the_same_bits_in_any_chunks(architecture: str) -> None:
    """Guards conversations, whose texts go on where the last answer ended."""
    made = graph(architecture, "int8")
    whole, logits = prefilled(made, 300)
    for chunk in (256, 128, 37, 1):
        cache, found = prefilled(made, 300, chunk)
        assert torch.equal(found, logits)
        assert all(torch.equal(*pair) for pair in zip(held(cache), held(whole), strict=True))


@pytest.mark.parametrize(("architecture", "format"), COMBINED)
def test_requests_together_have_their_bits_alone(architecture: str, format: str) -> None:
    """Guards batches: trees and text of several lengths, also over the end of a block, and rows left over."""
    made = graph(architecture, format)
    lengths = [5, 255, 300, 513, 40, 250, 256, 9, 700, 30]
    for count, last in ((2, False), (3, True), (10, False)):
        made.prepare(count)
        together, alone = ([prefilled(made, length)[0] for length in lengths[:count]] for _ in range(2))
        for step in range(3):
            feeds = []
            for place, caches in enumerate(zip(together, alone, strict=True)):
                n = 1 + (place * 5 + step) % 9
                tokens, positions, mask = TEXT[7 * place : 7 * place + n], None, None
                if place % 2:
                    depths, ancestors = random_tree(n, seed=place)
                    mask = torch.cat([torch.ones(n, caches[0].length, dtype=torch.bool), ancestors], 1)
                    positions = depths + caches[0].length
                feeds.append([Feed(tokens, cache, positions, mask, last) for cache in caches])
            found = made.forward([feed for feed, _ in feeds])
            wanted = [made.forward([feed])[0] for _, feed in feeds]
            assert all(torch.equal(mine.logits, theirs.logits) for mine, theirs in zip(found, wanted, strict=True))
            for feed in (feed for pair in feeds for feed in pair if feed.mask is not None):
                feed.cache.keep(feed.cache.length - len(feed.tokens), torch.tensor([0]))


def test_a_long_text_beside_others_has_its_bits_alone() -> None:
    """Guards the order of rows where one goes in pieces, as at the first level of a batch of drafts."""
    made = read("llama", "int8")
    for last in (False, True):
        for counts in ((300, 5, 7), (3, 513, 256, 257, 9)):
            several = [made.new_caches(len(counts)) for _ in range(2)]
            together, alone = (
                [
                    Feed(TEXT[at : at + n], cache, last=last)
                    for at, (n, cache) in enumerate(zip(counts, caches, strict=True))
                ]
                for caches in several
            )
            found = made.forward(together, reads=READS)
            wanted = [made.forward([feed], reads=READS)[0] for feed in alone]
            for mine, theirs in zip(found, wanted, strict=True):
                assert torch.equal(mine.logits, theirs.logits) and torch.equal(mine.states, theirs.states)
            for pair in zip(*several, strict=True):
                assert all(torch.equal(*both) for both in zip(*map(held, pair), strict=True))


# Of the error of logits, in their deviations.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "int8": 0.15, "int4": 0.6}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_logits_are_those_of_the_model(architecture: str) -> None:
    """Guards against a layer, a bias or a rotation that is left out; in fewer bits, against more than rounding."""
    wanted = model(architecture)(TEXT[None, :300]).logits[0].detach()
    for format, bound in BOUNDS.items():
        known = (architecture, format) in COMBINED
        made = graph(architecture, format) if known else GraphBackend(model(architecture), format)
        ((found, _),) = made.forward([Feed(TEXT[:300], made.new_caches(1)[0])])
        error = float((found - wanted).square().mean().sqrt() / wanted.std())
        assert error < bound, (format, error)
        assert torch.equal(made.score(TEXT[:300], 7), found[-7:])


def operations(made: GraphBackend) -> set[str]:
    return {node.get_type_name() for node in made._graph(None)._make(parts.Size()).get_ops()}


@pytest.mark.skipif(not kernels.multiplies_bytes(), reason="no AVX-512 VNNI")
@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_layers_by_one_operation_are_those_by_several(
    monkeypatch: pytest.MonkeyPatch, architecture: str, format: str
) -> None:
    """Guards norms, biases, gates and what is added up, and the states behind layers."""
    found = []
    for fuses in (parts.fuses, lambda *_: False):
        monkeypatch.setattr(parts, "fuses", fuses)
        made = GraphBackend(model(architecture), format)
        feeds = [Feed(TEXT[:300], made.new_caches(1)[0])]
        found.append(made.forward(feeds, reads=READS)[0])
        assert ("Layers" in operations(made)) == (len(found) == 1)
    for mine, theirs in zip(*found, strict=True):
        # Sums in another order, so that now and then an activation becomes the next integer.
        assert float((mine - theirs).square().mean().sqrt() / theirs.std()) < 0.03


def test_layers_with_other_biases_are_computed_by_several() -> None:
    """Guards models whose every product has something added."""
    torch.manual_seed(1)
    made = AutoModelForCausalLM.from_config(LlamaConfig(**GATED, attention_bias=True, mlp_bias=True)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.25)
    wanted = made(TEXT[None, :300]).logits[0].detach()
    own = GraphBackend(made, "int8")
    error = (own.score(TEXT[:300], 300) - wanted).square().mean().sqrt() / wanted.std()
    assert float(error) < BOUNDS["int8"] and "Layers" not in operations(own)


READS = (1, 2)
OURS = ("autoregressive", "dynatree", "linear", "fixed_tree")


@cache
def read(architecture: str, format: str) -> GraphBackend:
    """As `graph`, with states."""
    made = GraphBackend(model(architecture), format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "STATIC_FROM", 0)
        prefilled(made, 1)
        made.expose(READS)
    made.prepare(8)
    return made


@pytest.mark.parametrize(("architecture", "format"), COMBINED)
def test_logits_have_the_same_bits_where_states_are_read(architecture: str, format: str) -> None:
    """Guards exactness with a drafter that reads: alone, in trees of each width, together, over the end of a block."""
    both = graph(architecture, format), read(architecture, format)
    for committed in (1, 250, 300):
        caches = [prefilled(made, committed)[0] for made in both]
        for nodes in (1, 2, 3, 8, 13, 30, 70):
            depths, ancestors = random_tree(nodes, seed=nodes)
            mask = torch.cat([torch.ones(nodes, committed, dtype=torch.bool), ancestors], 1)
            feeds = [Feed(TEXT[:nodes], held, depths + committed, mask) for held in caches]
            (plain,), (reads,) = both[0].forward(feeds[:1]), both[1].forward(feeds[1:], reads=READS)
            assert torch.equal(plain.logits, reads.logits)
            assert plain.states.numel() == 0 and reads.states.shape == (nodes, 2 * SHAPE["hidden_size"])
            for held in caches:
                held.crop(committed)
    rows = []
    for made, asked in zip(both, ((), READS), strict=True):
        made.prepare(3)
        caches = [prefilled(made, length)[0] for length in (5, 255, 300)]
        rows.append(made.forward([Feed(TEXT[: n + 2], held) for n, held in enumerate(caches)], reads=asked))
    assert all(torch.equal(mine.logits, theirs.logits) for mine, theirs in zip(*rows, strict=True))
    assert [len(row.states) for row in rows[1]] == [2, 3, 4]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_states_are_those_of_the_model(architecture: str) -> None:
    """Guards the layer, the order and the position that states are of; of all tokens where logits are of the last."""
    own: Any = model(architecture)
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in own.base_model.layers]
    own(TEXT[None, :300])
    for hook in hooks:
        hook.remove()
    wanted = torch.cat([out[0] if isinstance(out, tuple) else out for out in seen], -1)[0].detach()
    made = read(architecture, "float32")
    (output,) = made.forward([Feed(TEXT[:300], made.new_caches(1)[0], last=1)], reads=READS)
    assert len(output.logits) == 1 and torch.allclose(output.states, wanted, atol=1e-3, rtol=1e-3)
    made.prepare(3)
    for row in made.forward([Feed(TEXT[:n], made.new_caches(1)[0]) for n in (3, 8, 5)], reads=READS):
        assert torch.allclose(row.states, wanted[: len(row.states)], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_each_forward_gives_the_states_that_it_is_asked_for(architecture: str) -> None:
    """Guards two drafters that read one target, and decoding without one, from what the others read."""
    own = copied(model(architecture))
    for of in (GraphBackend(own, "float32"), EagerBackend(own)):
        given = {
            reads: of.forward([Feed(TEXT[:20], of.new_caches(1)[0])], reads=reads)[0]
            for reads in ((2,), (1,), (), (1, 2), (2, 1))
        }
        logits, (one, two) = given[()].logits, (given[layer,].states for layer in (1, 2))
        assert all(torch.equal(output.logits, logits) for output in given.values())
        assert given[()].states.numel() == 0 and not torch.allclose(one, two)
        assert torch.equal(given[1, 2].states, torch.cat([one, two], 1))
        assert torch.equal(given[2, 1].states, torch.cat([two, one], 1))


def test_an_embedding_that_is_the_targets_is_not_held_twice() -> None:
    """Guards a drafter's memory: what it looked tokens up in before, a forward ago, is given back."""
    own = model("llama")
    target, drafter = (LanguageModel(one, format="int8") for one in (own, copy.deepcopy(own)))
    head = drafter.graph_head(torch.arange(8))
    before = drafter.forward_batch([Feed(TEXT[:3], drafter.new_caches(1)[0])], head=head)
    weight = weakref.ref(drafter.model.get_input_embeddings().weight)
    drafter.share_embedding(target)
    gc.collect()
    assert weight() is None
    after = drafter.forward_batch([Feed(TEXT[:3], drafter.new_caches(1)[0])], head=head)
    assert torch.equal(before[0].logits, after[0].logits)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_embeddings_are_joined_to_states(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards rows that are cut in pieces at the end of a block, those of several requests, and padded ones."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    own, fusion = model(architecture), models.fusion(2, SHAPE["hidden_size"])
    made = GraphBackend(own, "float32")
    made.join(fusion)
    states = torch.randn(300, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(2))
    rows = fusion.joined(own.get_input_embeddings()(TEXT[:300]), states)
    wanted = own(inputs_embeds=rows[None]).logits[0].detach()
    made.forward([Feed(TEXT[:1], made.new_caches(1)[0])])
    made.prepare(3)
    for counts in ((300,), (3,), (3, 8, 5)):
        found = made.forward([Feed(TEXT[:n], made.new_caches(1)[0], states=states[:n]) for n in counts])
        for n, output in zip(counts, found, strict=True):
            assert torch.allclose(output.logits, wanted[:n], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "format", "window"),
    [("llama", "int4", None), ("gpt_neox", "int8", 100), ("llama", "float32", 100)],
)
def test_a_drafter_that_reads_decodes_as_one_token_a_forward(
    architecture: str, format: str, window: int | None
) -> None:
    """Guards the whole way on the graph: over the ends of blocks of both, alone, together, with processors, drawn."""
    target = LanguageModel(copied(model(architecture)), None, format=format)
    drafter = models.reading(target, format="int8", **({"draft_window": window} if window else {}))
    assert target.in_graph and drafter.language_model.in_graph
    plain: Any = decoding.build(target, None, "autoregressive", {})
    # Most of all tokens, so that a draft by chance is right; and several levels.
    wide = {"policy": "fixed", "depth": 1, "branch": 64, "budget": 64}
    deep = {"policy": "threshold", "drafting": "hybrid", "depth": 3, "branch": 4, "threshold": None, "budget": 30}
    prompts, accepted = [TEXT[:240].tolist(), TEXT[:3].tolist(), TEXT[100:613].tolist()], 0
    several: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.2},
        {"do_sample": True, "temperature": 0.9, "seed": 2},
    ]
    for more in several:
        options = models.wanted(40, **more)
        wanted = [trace.output for trace in plain.decode_batch(prompts, options)]
        for knobs in (wide, deep):
            decoder: Any = decoding.build(target, drafter, "speculative", knobs)
            traces = [decoder.decode(prompt, options) for prompt in prompts]
            assert [trace.output for trace in traces] == wanted
            assert [trace.output for trace in decoder.decode_batch(prompts, options)] == wanted
            accepted += sum(fact.accepted for trace in traces for fact in trace.rounds)
    assert accepted > 100


@pytest.fixture
def openvinos(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """OpenVINO's operations, as where there is no compiler."""
    monkeypatch.setenv(kernels.VARIABLE, kernels.OPENVINO)
    kernels._kind.cache_clear()
    yield
    kernels._kind.cache_clear()


@pytest.mark.usefixtures("openvinos")
@pytest.mark.parametrize(("architecture", "format"), [("llama", "int4"), ("qwen3", "float32"), ("gpt_neox", "int8")])
def test_without_a_compiler_bits_are_the_same_too(
    monkeypatch: pytest.MonkeyPatch, architecture: str, format: str
) -> None:
    """Guards the other operations, whose blocks lie otherwise: trees, chunks and batches, in graphs of every width."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    made = GraphBackend(model(architecture), format)
    whole, logits = prefilled(made, 300)
    cache, found = prefilled(made, 300, 37)
    assert torch.equal(found, logits)
    assert all(torch.equal(*pair) for pair in zip(held(cache), held(whole), strict=True))
    for _ in range(2):
        for seed, (committed, nodes) in enumerate([(5, 40), (60, 12), (255, 1), (300, 33), (515, 64)]):
            equal, looked_at = equal_nodes(made, committed, nodes, seed)
            assert equal == looked_at, committed
        made.prepare(2)
    ((rows, _), (again, _)) = made.forward([Feed(TEXT[:9], one) for one in (cache, whole)])
    assert torch.equal(rows, again)
    wanted = model(architecture)(TEXT[None, :300]).logits[0].detach()
    assert float((made.score(TEXT[:300], 300) - wanted).square().mean().sqrt() / wanted.std()) < BOUNDS[format]
    types = operations(made)
    assert "PagedAttentionExtension" in types and not {"TreeAttention", "Product", "Layers"} & types


@pytest.mark.usefixtures("openvinos")
def test_without_a_sequence_of_no_token_rows_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the tests above: OpenVINO cuts the sums of a few rows in as many parts as there are threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    # Else it is seen, and two rows are computed.
    monkeypatch.setattr(compiled.Graph, "_one_row_is_like_two", lambda _: True)
    for there, differ in ((parts.EMPTY, False), (0, True)):
        monkeypatch.setattr(parts, "EMPTY", there)
        made = GraphBackend(model("llama"), "float32")
        found = [equal_nodes(made, committed, 40, committed) for committed in (60, 300, 515)]
        assert any(equal < looked_at for equal, looked_at in found) == differ


def test_without_blocks_of_their_own_paths_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the tests above: a node in the place of its sibling, and a path that lacks its first nodes."""
    made, append, own = graph("llama", "float32"), BlockCache.append_nodes, BlockCache._branch
    with monkeypatch.context() as patch:
        patch.setattr(BlockCache, "append_nodes", lambda self, parents: (append(self, parents)[0], []))
        assert equal_nodes(made, 60, 40, 3)[0] < 6
    with monkeypatch.context() as patch:
        patch.setattr(BlockCache, "_branch", lambda self, path, stored: self._text)
        assert equal_nodes(made, 60, 40, 3)[0] < 6
    with monkeypatch.context() as patch:
        patch.setattr(BlockCache, "_copy", lambda *_: None)
        assert equal_nodes(made, 60, 40, 3)[0] < 6
    assert BlockCache._branch is own and equal_nodes(made, 60, 40, 3) == (6, 6)


@pytest.mark.parametrize(("architecture", "format"), COMBINED)
def test_a_graph_of_its_own_width_has_the_bits_of_one_for_any(architecture: str, format: str) -> None:
    """Guards numbers of new tokens that are padded to a graph's width, and those that have none."""
    assert different_widths(graph(architecture, format), architecture, format) == 0


def test_a_graph_of_its_own_width_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the test above; and machines whose kernels for a width are others."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    other = graph("qwen2", "int8")
    for same, differing in ((compiled.Graph._same, False), (lambda *_: True, True)):
        monkeypatch.setattr(compiled.Graph, "_same", same)
        made = fresh("int8")
        # Of the same shapes but for biases.
        made._graph(None)._make = other._graph(None)._make
        made.prepare(1)
        assert (different_widths(made, "llama", "int8") > 0) == differing


def fresh(format: str) -> GraphBackend:
    """With the graph for any number of tokens alone."""
    made = GraphBackend(model("llama"), format)
    prefilled(made, 1)
    return made


def test_graphs_are_made_when_they_have_paid_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the first answer against seconds of compiling, and answers against compiling in their midst."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    monkeypatch.setattr(compiled, "EARNED", 3)
    made = fresh("float32")
    there, least = made._graph(None)._requests, made._graph(None)._least
    (cache,) = made.new_caches(1)
    for n in (1, 1, 7, 1, 7):
        made.forward([Feed(TEXT[:n], cache)])
    assert not there
    caches = made.new_caches(3)
    assert there.keys() == {least}
    for count in (3, 3, 2, 3):
        made.forward([Feed(TEXT[:1], cache) for cache in caches[:count]])
    assert there.keys() == {least}
    made.begin(3)
    assert there.keys() == {least, 3}
    # What is prepared for others takes its place.
    made.prepare(5)
    assert 3 not in there and {5, 20, 40} < there.keys()


def test_graphs_of_a_head_that_comes_later_are_prepared_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards timings against a drafter over all tokens whose graphs are made in their midst, or never."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    made = fresh("int8")
    assert not made._graph(made.head_over(torch.arange(5)))._requests
    made.prepare(1)
    later = made._graph(made.head_over(torch.arange(7)))
    assert later._requests.keys() == made._graph(None)._requests.keys() and later._requests


def test_a_generation_of_transformers_wants_the_logits_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards its assisted generation and its lookup against logits of a whole prompt, which no method of ours pays."""
    made, wanted = fresh("int8"), list[int]()
    given = GraphBackend._given

    def told(self: GraphBackend, *a: Any) -> Any:
        found = given(self, *a)
        wanted.append(found.wanted)
        return found

    monkeypatch.setattr(GraphBackend, "_given", told)
    own = model("llama")
    with torch.inference_mode(), computed_by(made, own):
        every = own(input_ids=TEXT[None, :40], logits_to_keep=0).logits
        for keep in (1, 3, 40, 99):
            assert torch.equal(own(input_ids=TEXT[None, :40], logits_to_keep=keep).logits, every[:, -keep:])
    assert wanted == [40, 1, 3, 40, 40]


@pytest.mark.skipif(not kernels.multiplies_bytes(), reason="no AVX-512 VNNI")
def test_rows_of_nobody_are_not_computed_where_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards forwards over numbers of tokens that have no graph: the one for any number takes less than a row."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    monkeypatch.setattr(compiled, "EXACT_EARNED", 2)
    made, ran = fresh("int8"), list[int | None]()
    infer = compiled._Request.infer
    monkeypatch.setattr(compiled._Request, "infer", lambda self, *a: [ran.append(self.size.rows), infer(self, *a)][1])
    (cache,) = made.new_caches(1)
    for n in (3, 6, 3):
        made.forward([Feed(TEXT[:n], cache)])
    made.begin(1)
    assert 3 in ran  # compared with the one for any number
    ran.clear()
    for n in (2, 3, 4):
        made.forward([Feed(TEXT[:n], cache)])
    assert ran == [None, 3, None]
    made.prepare(4)
    assert {*made._graph(None)._requests} == {*compiled.EXACT_WIDTHS}
    ran.clear()
    for n in (1, 16, 17):
        made.forward([Feed(TEXT[:n], cache)])
    assert ran == [1, 16, None]


def test_requests_share_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards batches from being decoded one by one. A long text goes in pieces, many short ones in a few forwards."""
    made, together = fresh("int8"), []
    infer = compiled.Graph.infer
    monkeypatch.setattr(
        compiled.Graph, "infer", lambda self, given, *a: together.append(len(given)) or infer(self, given, *a)
    )
    caches = made.new_caches(12)
    for counts in ((1, 1), (3, 8, 40, 1), (300, 5, 7), (100,) * 12):
        made.forward([Feed(TEXT[:n], cache) for n, cache in zip(counts, caches, strict=False)])
    assert together == [2, 4, 1, 1, 2, 5, 5, 2]


def test_lent_logits_are_those_of_the_last_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards logits that nobody copied: of graphs of any width and of a fixed one, of texts in several forwards."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    made = fresh("int8")
    for prepared in (False, True):
        if prepared:
            made.prepare(1)
        for counts in ((2,), (1, 3), (8,), (300, 5), (3, 300), (100,) * 7):
            rows = []
            for lent in (False, True):
                caches = made.new_caches(len(counts))
                feeds = [Feed(TEXT[:n], cache, last=n == 8) for n, cache in zip(counts, caches, strict=True)]
                rows.append([output.logits for output in made.forward(feeds, lent=lent)])
            assert all(torch.equal(*pair) for pair in zip(*rows, strict=True))
        (cache,) = made.new_caches(1)
        own, lent = (made.forward([Feed(TEXT[:4], cache)], lent=lent)[0].logits for lent in (False, True))
        before = own.clone(), lent.clone()
        made.forward([Feed(TEXT[4:8], cache)])
        assert torch.equal(own, before[0])
        # What it is for: nothing was copied.
        assert not prepared or not torch.equal(lent, before[1])


def test_a_graph_goes_with_its_backend() -> None:
    """Guards memory from models that nobody has any more: a cycle would keep it."""
    made = fresh("int8")
    graph = weakref.ref(made._graph(None))
    gc.disable()
    try:
        del made
        assert graph() is None
    finally:
        gc.enable()


def test_blocks_that_come_back_while_the_pool_grows_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a request that ends in another thread in the midst of that."""
    pool = block_cache.Pool(1, 1, 4)
    taken = [pool.take() for _ in range(len(pool) - 1)]
    new = pool._new
    monkeypatch.setattr(pool, "_new", lambda count: [pool.give([taken.pop()]), new(count)][1])
    pool.take()
    # Half of them are new; one came back, and one was taken.
    assert len(pool._free) == len(pool) // 2 + 1 - 1


def test_more_text_than_the_pool_has_blocks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards text in a pool that grows in the midst of it, and the graphs that are for a number of blocks."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    monkeypatch.setattr(block_cache, "_MOST", 64)
    made = fresh("int8")
    made.prepare(1)
    caches = [prefilled(made, 700)[0] for _ in range(4)]
    assert len(made._pool) == 128
    wanted, _ = prefilled(graph("llama", "int8"), 700)
    ((logits, _),) = graph("llama", "int8").forward([Feed(TEXT[:1], wanted)])
    for _ in range(2):
        found = [made.forward([Feed(TEXT[:1], cache)])[0].logits for cache in caches]
        assert all(torch.equal(logits, one) for one in found)
        for one in caches:
            one.crop(700)
        # None keeps the smaller pool in memory until it is made again.
        made.begin(1)
        assert all(map(made._graph(None)._fits, made._graph(None)._requests.values()))
        made.prepare(1)
    taken = len(made._pool) - 1 - len(made._pool._free)
    del caches, one
    assert taken >= 4 * 22 and len(made._pool._free) == len(made._pool) - 1


@pytest.mark.parametrize("format", parts.FORMATS)
def test_two_rows_are_computed_where_one_has_other_bits(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Guards processors without AVX-512, whose kernel for a single row of int8 and int4 sums in another order."""
    like = compiled.Graph._one_row_is_like_two
    found = {}
    for known in (like, lambda _: False):
        monkeypatch.setattr(compiled.Graph, "_one_row_is_like_two", known)
        made = fresh(format)
        assert equal_nodes(made, 40, 12, 3) == (6, 6)
        cache, _ = prefilled(made, 5)
        ((logits, _),) = made.forward([Feed(TEXT[:1], cache)])
        assert logits.shape == (1, made._model.config.vocab_size)
        found[made._graph(None)._least] = logits
    assert 2 in found and all(torch.equal(found[2], logits) for logits in found.values())


def test_graphs_are_prepared_in_and_out_of_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards memory that was made in one mode and is written in the other, which torch refuses."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    made = GraphBackend(model("llama"), "int8")
    with torch.inference_mode():
        prefilled(made, 3)
    made.prepare(2)
    with torch.inference_mode():
        caches = made.new_caches(2)
        logits = made.forward([Feed(TEXT[:1], cache) for cache in caches])
    assert torch.equal(logits[0].logits, logits[1].logits)


def different_widths(made: GraphBackend, architecture: str, format: str) -> int:
    """In how many of some forwards `made` has other bits than a graph that takes any number of tokens."""
    anywhere = GraphBackend(model(architecture), format)
    found = []
    for count in (40, 300):
        caches = [prefilled(backend, count)[0] for backend in (made, anywhere)]
        for n in (1, 2, 3, 5, 8, 13, 30, 64, 70):
            both = zip((made, anywhere), caches, strict=True)
            mine, theirs = (backend.forward([Feed(TEXT[:n], cache)])[0].logits for backend, cache in both)
            found.append(torch.equal(mine, theirs))
            for held in caches:
                held.crop(count)
    return found.count(False)


@pytest.mark.parametrize("across", [True, False])
def test_each_node_sees_its_path(across: bool) -> None:
    """Guards the blocks: text and nodes appended, kept and cropped at random, each row's own beside a plain list; and
    leaves at the begin of a block, their keys in order, until they are kept."""
    chance, pool, several = random.Random(0), Pool(1, 1, 3, across), np.arange(3) / 4
    cache, plain, counted, leaves = BlockCache(pool), list[int](), 0, 0

    def places(seat: Seat) -> tuple[np.ndarray, np.ndarray]:
        """Where a row's key and value are written."""
        if seat.own is None:
            at = 0, seat.blocks[seat.past // BLOCK], 0, seat.past % BLOCK
            return pool.keys[at], pool.values[at]
        in_memory = pool.keys[0, seat.own, 0].T.reshape(-1)
        assert np.shares_memory(in_memory, pool.keys)
        return in_memory[: len(several)], pool.values[0, seat.own, 0, 0]

    def write(seat: Seat, value: int) -> None:
        key, of = places(seat)
        key[:], of[:] = value + several, -value - several

    def seen(seat: Seat) -> list[int]:
        blocks = seat.blocks[: seat.past // BLOCK + 1]
        rows, values = (part[0, blocks, 0].reshape(-1, 3)[: seat.past + 1] for part in (pool.keys, pool.values))
        if seat.own is not None:
            # By itself, and not out of its path's blocks.
            rows[-1], values[-1] = places(seat)
        assert len(rows) == seat.past + 1 and (rows == -values).all() and (rows - rows[:, :1] == several).all()
        return rows[:, 0].astype(int).tolist()

    for _ in range(1000):
        if cache.length > 300:
            cut = chance.choice([3, 31, 32, 33, 200, cache.length - 1])
            cache.crop(cut)
            del plain[cut:]
        elif chance.random() < 0.3:
            fresh = [counted := counted + 1 for _ in range(chance.choice([1, 1, 2, 5, 40, 70]))]
            for seat, value in zip(cache.append_text(len(fresh))[0], fresh, strict=True):
                write(seat, value)
            plain += fresh
            assert seen(seat) == plain
        # Nodes, of one forward or of one a level; some levels are cropped.
        paths: list[list[int]] = []
        values: list[int] = []
        for count in chance.sample([1, 2, 4, 9, 30], chance.randint(1, 3)):
            parents = [
                chance.choice([-1, *range(len(paths) + place)] if paths or place else [-1]) for place in range(count)
            ]
            seats, further = cache.append_nodes(parents)
            begin = len(paths)
            leaves += sum(seat.own is not None for seat in seats)
            for parent in parents:
                values.append(counted := counted + 1)
                paths.append([*(paths[parent] if parent >= 0 else []), len(paths)])
            for place, seat in [*enumerate(seats), *further]:
                write(seat, values[begin + place])
            for place, seat in enumerate(seats):
                assert seen(seat) == plain + [values[node] for node in paths[begin + place]]
            if chance.random() < 0.3:
                left = chance.randint(1, len(paths))
                cache.crop(cache.committed + left)
                del paths[left:], values[left:]
            assert cache.length == len(plain) + len(paths)
        path = chance.choice(paths)[: chance.randint(0, 5)]
        cache.keep(cache.committed, torch.tensor(path, dtype=torch.long))
        plain += [values[node] for node in path]
        assert cache.length == cache.committed == len(plain)
    assert (leaves > 100) == across
    held_by_it = len(pool) - 1 - len(pool._free)
    each = 2 * 4 * len(several)
    assert cache.sizes() == (len(plain) * each, held_by_it * BLOCK * each)
    del cache
    assert sorted(pool._free) == [*range(1, len(pool))]


def test_weights_that_were_codes_keep_their_values() -> None:
    """Guards a 4-bit file's weights from being rounded a second time, and others from more than half a step."""
    generator = torch.Generator().manual_seed(0)
    step = (torch.rand(40, 6, 1, generator=generator) / 10 + 1e-3).half().float()
    low = (-8 * step * (0.8 + 0.4 * torch.rand(40, 6, 1, generator=generator))).half().float()
    own = torch.randint(16, (40, 6, 32), generator=generator)
    own[3] = own[3] // 2  # some groups use few of the codes, some one alone
    own[5, 2] = 7
    weight = (step * own + low).view(40, -1)
    found = codes.four_bits(weight)
    assert torch.allclose(value(found), weight.view(40, 6, 32), rtol=0, atol=1e-6)
    assert bool((found.rest.abs() <= 0.5001 * found.scale.squeeze(-1))[:3].all())
    other = torch.randn(20, 64, generator=generator)
    found = codes.four_bits(other)
    assert bool(((value(found) - other.view(20, 2, 32)).abs() <= 0.51 * found.scale).all())
    assert bool((found.codes >= 0).all()) and bool((found.codes <= 15).all())
    eight, scale = codes.eight_bits(other)
    assert float((eight * scale - other).abs().max()) <= float(scale.max()) / 2 + 1e-6


def value(found: codes.Codes) -> Tensor:
    return found.scale * (found.codes - found.zeros) + found.rest[..., None]


@pytest.mark.parametrize(
    ("architecture", "format"),
    [("llama", "int8"), ("gpt_neox", "int4"), ("qwen2", "float32")],
)
def test_every_method_decodes_as_one_token_a_forward(architecture: str, format: str) -> None:
    """Guards the decoders on the graph: over the ends of blocks, alone, together, with processors, and drawn."""
    prompts = [TEXT[:240].tolist(), TEXT[:3].tolist(), TEXT[100:613].tolist()]
    several: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.2}]
    several += [{"do_sample": True, "temperature": 0.9, "top_p": 0.98, "seed": 2}]
    wanted: list[list[list[int]]] = []
    for method in (*OURS, "transformers", "assisted", "prompt_lookup"):
        with DynaTree(model(architecture), drafter=copied(model(architecture)), method=method, dtype=format) as tree:
            # Where transformers draws, it draws other texts.
            for place, options in enumerate(several[: 3 if method in OURS else 2]):
                alone = [tree.generate(prompt, max_new_tokens=40, **options) for prompt in prompts]
                if method == "autoregressive":
                    wanted.append([found.tokens for found in alone])
                elif method in ("dynatree", "linear", "fixed_tree", "assisted"):
                    assert min(found.tokens_per_round for found in alone) > 1.2, method
                assert [found.tokens for found in alone] == wanted[place], method
                if method in OURS:
                    together = tree.generate(prompts, max_new_tokens=40, **options)
                    assert [found.tokens for found in together] == wanted[place], method


@pytest.mark.parametrize("method", OURS)
def test_a_conversation_goes_on_as_if_afresh(method: str) -> None:
    """Guards drawn turns in few bits: ended within an accepted path, left by their reader, or cut back."""
    own, text, kept, within = model("llama"), TEXT[:250].tolist(), PrefixCache(), 0
    asked: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.9,
        "seed": 2,
        "eos_token_id": [*range(0, VOCABULARY, 9)],
    }
    plain = DynaTree(own, method="autoregressive", dtype="int8")
    with plain, DynaTree(own, drafter=copied(own), method=method, dtype="int8") as tree:
        for turn in range(12):
            wanted = plain.generate(text, 30, **asked).tokens
            stream, left = tree.stream(text, 30, kept=kept, **asked), turn % 4 == 3
            next(stream) if left else list(stream)
            stream.close()
            found = stream.generation
            assert found.tokens == (wanted[: len(found.tokens)] if left else wanted)
            assert kept.reused or not turn
            # Behind the end token its path went on.
            within += any(one.accepted == len(one.emitted) for one in found.trace.rounds[-1:])
            text = text[: 100 + 13 * turn] if turn % 3 == 2 else [*text, *found.tokens]
            text = [*text, *TEXT[turn : turn + 3].tolist()]
    assert within or method not in ("linear", "fixed_tree")


@pytest.mark.parametrize("method", OURS)
def test_drawn_rows_that_end_apart_are_what_they_are_alone(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Guards ends within a path beside rows that go on, in graphs that were made for all of them."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    prompts = [TEXT[:240].tolist(), TEXT[:3].tolist(), TEXT[100:613].tolist(), TEXT[7:40].tolist()]
    own, asked = model("llama"), {"do_sample": True, "temperature": 0.9, "seed": 2}
    with DynaTree(own, drafter=copied(own), method=method, dtype="int8") as tree:
        whole = [tree.generate(prompt, 40, **asked).tokens for prompt in prompts]
        ends = [whole[0][2], whole[1][11], whole[2][23]]
        wanted = [row[: min((row.index(end) + 1 for end in ends if end in row), default=40)] for row in whole]
        assert len({*map(len, wanted)}) > 1
        tree._target.prepare(len(prompts))
        found = tree.generate(prompts, 40, eos_token_id=ends, **asked)
    assert [one.tokens for one in found] == wanted


@pytest.mark.parametrize("method", OURS)
def test_a_processor_may_decode_by_the_model_itself(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Guards rows that are read after it, of a path's later nodes and of later prompts, from its forwards."""
    monkeypatch.setattr(compiled, "STATIC_FROM", 0)
    prompts = [TEXT[:240].tolist(), TEXT[100:130].tolist(), TEXT[7:40].tolist()]
    own = model("llama")
    with DynaTree(own, drafter=copied(own), method=method, dtype="int8") as tree:

        def asking(ids: Tensor, scores: Tensor) -> Tensor:
            tree.generate([3, 1], 3)
            return scores

        for asked in (prompts[:1], prompts):
            tree._target.prepare(len(asked))
            found, wanted = (tree.generate(asked, 24, logits_processor=given) for given in ([asking], None))
            assert [one.tokens for one in found] == [one.tokens for one in wanted]


@pytest.mark.parametrize("depth", [3, 4])
def test_a_drafter_with_a_window_drafts_on(depth: int) -> None:
    """Guards a drafter with a window, whose positions and blocks are others than the target's."""
    # Of the last token, nearly alone, so that what the window hides is hardly missed.
    target = copied(model("llama"))
    for layer in target.model.layers:
        layer.self_attn.o_proj.weight.data *= 0.03
    helper = copied(target)
    helper.config.draft_window = 256
    wanted: list[int] = []
    for method, knobs in (("autoregressive", {}), ("fixed_tree", {"depth": depth, "branch": 2, "budget": 30})):
        with DynaTree(target, drafter=helper, method=method, dtype="int8", **knobs) as tree:
            found = tree.generate(TEXT[:300].tolist(), max_new_tokens=150)
        wanted = wanted or found.tokens
    assert found.tokens == wanted and found.tokens_per_round > 2


@pytest.mark.parametrize("knobs", [{"branch": 4, "budget": 250}, {"branch": 7, "depth": 4, "budget": 1024}])
def test_trees_are_as_large_as_their_budget(knobs: dict[str, Any]) -> None:
    """Guards against an error in the midst of an output, for a budget that was accepted before it."""
    wanted: list[int] = []
    for method, asked in (("autoregressive", {}), ("dynatree_threshold", {"threshold": None, **knobs})):
        with DynaTree(model("llama"), drafter=copied(model("llama")), method=method, dtype="int8", **asked) as tree:
            found = tree.generate(TEXT[:200].tolist(), max_new_tokens=60)
        wanted = wanted or found.tokens
    assert found.tokens == wanted
    assert max(len(fact.tree["tokens"]) for fact in found.trace.rounds) > 240


def test_a_layer_with_an_adapter_is_computed_as_it_is() -> None:
    """Guards against a graph of the weights below an adapter, whose part would be lost."""

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.sum(-1, keepdim=True)

    adapted = copied(model("llama"))
    layer = adapted.model.layers[0].self_attn.q_proj
    other = Adapted(layer.in_features, layer.out_features, bias=False)
    other.weight = layer.weight
    adapted.model.layers[0].self_attn.q_proj = other
    assert not LanguageModel(adapted, None, format="float32").in_graph
    with pytest.raises(UserError, match="it has layers of other kinds, Adapted; take float32"):
        LanguageModel(adapted, None, format="int4")


def test_transformers_by_torch_is_the_model_as_loaded() -> None:
    """Guards the baseline that users have: the model's own forward, and no claim that it is the target's."""
    loaded = model("llama")
    found: dict[str, tuple[list[int], int]] = {}
    for forward in ("target", "torch"):
        target = LanguageModel(copied(loaded), None, format="int4")
        decoder = decoding.build(target, None, "transformers", {"forward": forward})
        options = GenerationOptions(max_new_tokens=24)
        seen: list[None] = []
        with target.watched(partial(seen.append, None), lambda _: None):
            trace = decoder.decode(TEXT[:30].tolist(), options)
        found[forward] = trace.output, len(seen)
        assert trace.target_forwards == 23
        assert decoding.comparable(decoder, options) == decoder.audited == (forward == "target")
    theirs = loaded.generate(TEXT[None, :30], do_sample=False, max_new_tokens=24)[0, 30:].tolist()
    assert found["torch"] == (theirs, 0)
    assert found["target"][0] != theirs and found["target"][1] == 24


def copied(model: PreTrainedModel) -> PreTrainedModel:
    """An equal drafter, whose forwards are counted apart."""
    made = AutoModelForCausalLM.from_config(model.config)
    made.load_state_dict(model.state_dict())
    return made.eval()


def test_the_model_is_left_as_it_was() -> None:
    """Guards a loaded model from the graph: its own forward gives what it gave."""
    own = model("llama")
    before = own(TEXT[None, :20]).logits
    with DynaTree(own, dtype="int4") as tree:
        assert tree.generate(TEXT[:9].tolist(), max_new_tokens=5).tokens
    assert torch.equal(own(TEXT[None, :20]).logits, before)


def test_costs_are_measured_behind_any_context() -> None:
    """Guards against a chain beyond the positions that are known."""
    target = LanguageModel(model("llama"), format="int8")
    found = forward_times.costs(target, None, [506], 1, {}, {}, tell=lambda _: None)
    assert found.verify.tokens[-1] == 128


def test_a_level_of_a_batch_is_timed_as_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards costs of batches that hold forwards which no draft takes."""
    helper = DraftModel(LanguageModel(model("llama"), format="int8"))
    forwards: list[int] = []
    infer = compiled.Graph.infer
    monkeypatch.setattr(
        compiled.Graph, "infer", lambda self, given, *a: forwards.append(len(given)) or infer(self, given, *a)
    )
    caches = helper.new_caches(4)
    for row, one in enumerate(caches):
        helper.language_model.forward(TEXT[: BLOCK - row], one, last=1)
    helper.prepare(4)
    for n in (1, 2, 8):
        forwards.clear()
        forward_times._level(helper, caches, n)
        assert forwards == [4] and [one.length for one in caches] == [BLOCK - row for row in range(4)]


def test_what_has_no_graph_is_refused_in_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against another format in silence; what torch has too, it computes."""
    model = models.random_model("gpt2", dtype=torch.float32)
    known = "llama, mistral, qwen2, qwen3, gpt_neox"
    with pytest.raises(UserError, match=f"dtype: int4 is for {known}; GPT2LMHeadModel is gpt2"):
        DynaTree(model, dtype="int4")
    tree = DynaTree(model, dtype="float32", method="autoregressive")
    assert (tree.format, tree.exact) == ("float32", "within rounding")
    with monkeypatch.context() as patch:
        patch.setattr("platform.machine", lambda: "arm64")
        with pytest.raises(UserError, match="dtype: int8 is for x86_64 processors; this is arm64; take float32"):
            DynaTree(models.random_model("llama", dtype=torch.float32), dtype="int8")
    assert DynaTree(models.random_model("llama", dtype=torch.float32)).exact == "bitwise"
