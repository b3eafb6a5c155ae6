"""What a method is said to hold agrees with what tiny models hold, worked out by hand."""

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from dynatree import plugins
from dynatree.data import model_sources
from dynatree.data.prompts import Prompt
from dynatree.engine import checkpoint
from dynatree.engine.compatibility import DTYPES
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.graph import kernels
from dynatree.engine.graph.block_cache import BLOCK
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.measuring import memory, watermark
from tests import models
from tests.conftest import Build, Drafts
from tests.decoding.test_exactness import METHODS, PROMPT, TREES, reference

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
# Two layers of keys and values with four heads of eight float32 numbers.
A_TOKEN = 2 * 4 * 2 * 8 * 4
WEIGHTS = {"target": 3, "drafter": 5}


def decoder(method: str, target: LanguageModel, drafter: DraftModel | None) -> Any:
    name, knobs = METHODS[method]
    return plugins.load("decoding", name).Decoder(target, drafter, models.calibration(), **knobs)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A target and a drafter as model folders, of different weights and equal shapes."""
    home = tmp_path_factory.mktemp("models")
    for role, seed in WEIGHTS.items():
        source = {"kind": "random", "architecture": "llama", "configuration": SHAPE}
        model_sources.build(model_sources.parse(source), home / role, home, seed=seed)
    return {role: home / role for role in WEIGHTS}


def measured(folders: dict[str, Path], method: str, tokens: int = 12) -> dict[str, Any]:
    name, knobs = METHODS[method]
    prompt = Prompt("d/a/0", "a", "d", "", "evaluation", "", 0, [*PROMPT])
    return memory.record(folders, None, name, knobs, "float32", "cpu", prompt, models.wanted(tokens))


def test_plain_decoding_holds_one_model_and_one_cache(folders: dict[str, Path]) -> None:
    """Guards against a drafter's weights or cache in the baseline's account, and against a peak below what is held."""
    found = measured({"target": folders["target"]}, "autoregressive")
    assert (found["drafter_weights_mib"], found["drafter_cache_used_mib"], found["drafter_cache_allocated_mib"]) == (
        0,
    ) * 3
    assert found["cache_used_mib"] * memory.MIB == (len(PROMPT) + 12 - 1) * A_TOKEN  # the last token is not fed
    blocks = -(-(len(PROMPT) + 12 - 1) // BLOCK)
    assert found["cache_allocated_mib"] * memory.MIB == blocks * BLOCK * A_TOKEN
    assert found["peak_mib"] >= found["loaded_mib"] > found["weights_mib"] > 0
    assert found["load_peak_mib"] >= found["weights_mib"]
    assert len(found["output_ids"]) == found["output_tokens"] == 12


def test_a_drafter_is_accounted_apart(folders: dict[str, Path]) -> None:
    """Guards against a drafter that is forgotten, counted with the target, or as large as before it was rounded."""
    plain, found = measured({"target": folders["target"]}, "autoregressive"), measured(folders, "fixed")
    assert found["weights_mib"] == plain["weights_mib"]
    # Its weights have 8 bits, of which nobody sees anything but the agreement.
    assert 0 < found["drafter_weights_mib"] < found["weights_mib"]
    assert 0 < found["drafter_cache_used_mib"] <= found["drafter_cache_allocated_mib"]
    assert found["output_ids"] == plain["output_ids"]


@pytest.mark.parametrize("method", METHODS)
def test_watching_sees_committed_and_tree_tokens(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against a peak taken behind the crop, which would miss the tree, and against a changed output."""
    ours, helper = target(dtype=torch.float32), drafter("related", dtype=torch.float32)
    with memory.watched(ours) as cache:
        trace = decoder(method, ours, helper).decode([*PROMPT], models.wanted(20))
    assert trace.output == reference(ours, PROMPT, 20)
    lengths, emitted = [len(PROMPT)], trace.first
    for round in trace.rounds:
        lengths.append(len(PROMPT) + emitted + round.drafted)
        emitted += len(round.emitted)
    heads = ours.model.config.num_key_value_heads
    bytes_a_token = 2 * 2 * heads * 8 * 4
    # transformers' lookup feeds up to draft_tokens - 2 = 2 positions beyond the last wanted token; its record does not.
    beyond = len(PROMPT) + 20 + 2 - max(lengths) if method == "prompt_lookup" else 0
    assert max(lengths) * bytes_a_token <= cache.used <= (max(lengths) + beyond) * bytes_a_token
    assert cache.allocated >= cache.used
    assert not ours.model.base_model._forward_hooks


@pytest.mark.parametrize("method", TREES)
def test_watching_sees_the_drafters_cache(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against drafting that goes past the hook, as that over a draft vocabulary does past the causal LM."""
    ours, helper = target(), drafter("related")
    with memory.watched(helper) as cache:
        trace = decoder(method, ours, helper).decode([*PROMPT], models.wanted(20))
    assert (cache.used > 0) == (trace.draft_forwards > 0)


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_every_architecture_shows_its_cache(target: Build, architecture: str) -> None:
    """Guards against a model whose output carries the cache under another name."""
    ours = target(architecture)
    with memory.watched(ours) as cache:
        decoder("autoregressive", ours, None).decode([*PROMPT], models.wanted(3))
    assert cache.used > 0


def test_weights_count_what_is_held() -> None:
    """Guards against tied weights counted twice, packed copies missed and a draft vocabulary's own head forgotten."""
    tied, loose = (models.random_model(dtype=torch.float32, tie_word_embeddings=tie) for tie in (True, False))
    head = tied.get_output_embeddings().weight.nbytes
    total = sum(tensor.nbytes for tensor in (*loose.parameters(), *loose.buffers()))
    assert together(LanguageModel(loose)) == total
    held = LanguageModel(tied)
    assert together(held) == total - head
    assert together(DraftModel(held, torch.arange(10))) == total - head + 10 * 32 * 4
    packed = LanguageModel(loose, packed=True)
    assert not packed.packed or together(packed) >= total
    in_graph = [LanguageModel(tied, format=format) for format in ("float32", "int8")]
    assert together(in_graph[0]) == pytest.approx(total, rel=0.01)  # a head of its own, no norms
    # Our own products hold the scales of rows beside them, of whole tiles of 16.
    layers = [part.weight for part in tied.modules() if isinstance(part, torch.nn.Linear)]
    scales = 4 * sum(-(-len(weight) // 16) * 16 for weight in layers) if kernels.multiplies_bytes() else 0
    assert together(in_graph[1]) == pytest.approx(head + (total - head) / 4 + scales, rel=0.02)


def together(*models_of: LanguageModel | DraftModel) -> int:
    """Bytes of the weights of all of them, shared ones once."""
    sizes: dict[Any, int] = {}
    for model in models_of:
        sizes |= model.weights()
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_equal_embedding_is_held_once(tmp_path: Path, dtype: str, tied: bool) -> None:
    """Guards against a drafter's second copy, and against one whose head lost its weights on the way."""
    plain = models.random_model(dtype=DTYPES[dtype], tie_word_embeddings=tied)
    plain.save_pretrained(tmp_path)
    target, drafter = checkpoint.load_pair({"target": tmp_path, "drafter": tmp_path}, dtype, "cpu")
    assert drafter
    weights = [model.get_input_embeddings().weight for model in (target.model, drafter.language_model.model)]
    assert weights[0] is weights[1]
    assert together(target) + together(drafter) - together(target, drafter) >= weights[0].nbytes
    expected = LanguageModel(plain).forward(torch.tensor(PROMPT), KeyValueCache())
    drafted = drafter.draft(torch.tensor(PROMPT), drafter.new_caches(1)[0])
    bound = (0.2 if drafter.language_model.format == "int8" else 1e-9) * float(expected.std())
    assert float((expected - drafted).abs().max()) < bound


def test_another_embedding_stays_its_own(folders: dict[str, Path]) -> None:
    """Guards against a drafter that reads its target's embedding, and drafts nonsense; equal tokenizers are one."""
    target, drafter = checkpoint.load_pair(folders, "float32", "cpu")
    assert drafter and target.tokenizer is drafter.language_model.tokenizer is not None
    models_of = target.model, drafter.language_model.model
    assert not models_of[0].get_input_embeddings().weight.equal(models_of[1].get_input_embeddings().weight)
    assert together(target, drafter) == together(target) + together(drafter)


def test_a_high_water_mark_stays_until_it_is_reset() -> None:
    """Guards against a peak that is only what is held now, and against a reset that does nothing."""
    water = watermark.HighWater(torch.device("cpu"))
    water.reset()
    before = water.peak()
    with mmap.mmap(-1, 96 * memory.MIB) as mapped:  # an allocator might keep what is given back to it
        for _ in range(96):
            mapped.write(b"1" * memory.MIB)
    assert water.peak() >= before + 90 * memory.MIB > water.held() + 60 * memory.MIB
    water.reset()
    assert water.peak() < before + 10 * memory.MIB


def test_a_system_without_a_mark_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a made-up peak where the system does not tell one."""
    monkeypatch.setattr(watermark, "PROCESS", tmp_path)
    water = watermark.HighWater(torch.device("cpu"))
    with pytest.raises(UserError, match="measure on Linux"):
        water.peak()
    (tmp_path / "status").write_text("Name:\tx\n")
    with pytest.raises(UserError, match="no VmHWM"):
        water.peak()
