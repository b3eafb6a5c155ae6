"""Packed weights: the same logits, for every method, and a plain model where packing is impossible."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from dynatree.engine.checkpoint import load, load_drafter, load_pair
from dynatree.engine.eager import packing
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.files import DRAFT_VOCABULARY
from tests import models


def biased(architecture: str) -> Any:
    """A random model whose biases, if it has any, are not 0."""
    model = models.random_model(architecture, dtype=torch.float32)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=drawn)
    return model


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_packed_logits_are_the_plain_models(architecture: str) -> None:
    """Guards against a lost bias, a transposed weight, or a head that is not packed with its tie kept."""
    plain, tokens = biased(architecture), torch.arange(20)
    expected = LanguageModel(biased(architecture)).forward(tokens, KeyValueCache())
    model = LanguageModel(plain, packed=True)
    assert (model.packed is not None) == packing.available(models.random_model(dtype=torch.float32))
    assert torch.allclose(model.forward(tokens, KeyValueCache()), expected, rtol=1e-4, atol=1e-3)
    wanted = models.generated(LanguageModel(biased(architecture)), [3, 1, 4], 12)
    assert models.generated(model, [3, 1, 4], 12) == wanted


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="tells no memory maps")
@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_a_packed_model_lets_go_of_its_file(architecture: str, tmp_path: Path, torch_alone: None) -> None:
    """Guards against the dense weights staying in memory, mapped from the file, beside the packed ones."""
    biased(architecture).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert (model.packed is not None) == packing.available(models.random_model(dtype=torch.float32))
    if model.packed:
        assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize("architecture", models.CONFIGS)
@pytest.mark.parametrize("native", [True, False])
def test_a_drafter_is_rounded_where_the_cpu_multiplies_bfloat16(
    architecture: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a drafter rounded where that is slower, and against one that drafts something else."""
    if not packing.available(models.random_model(dtype=torch.float32)):
        pytest.skip("this torch cannot pack")
    if native and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16")
    monkeypatch.setattr(packing, "multiplies_bfloat16", lambda: native)
    tokens = torch.arange(20)
    exact = LanguageModel(biased(architecture), packed=True)
    rounded = LanguageModel(biased(architecture), packed=True, rounded=True)
    assert (exact.packed, rounded.packed) == (torch.float32, torch.bfloat16 if native else torch.float32)
    expected, found = (model.forward(tokens, KeyValueCache()) for model in (exact, rounded))
    assert found.dtype == torch.float32 and torch.equal(found, expected) is not native
    assert float((found - expected).abs().max()) < 0.1 * float(expected.std())


def test_only_the_drafter_of_a_pair_is_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_alone: None
) -> None:
    """Guards the outputs, which are the target's."""
    models.random_model(dtype=torch.float32).save_pretrained(tmp_path)
    monkeypatch.setattr(packing, "multiplies_bfloat16", lambda: False)
    asked = []
    real = packing.pack
    monkeypatch.setattr("dynatree.engine.language_model.pack", lambda *args: asked.append(args[2]) or real(*args))
    load_pair({"target": tmp_path, "drafter": tmp_path}, "float32", "cpu")
    assert asked == [False, True]


def test_other_precisions_stay_plain() -> None:
    """Guards exactness in float64, which oneDNN does not have."""
    assert not LanguageModel(models.random_model(dtype=torch.float64), packed=True).packed


@pytest.mark.parametrize("broken", ["wrong", "raising"])
def test_a_kernel_that_errs_leaves_the_model_as_it_was(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against wrong numbers from a build of oneDNN that was never seen here."""

    def forward(layer: packing.PackedLinear, inputs: torch.Tensor) -> torch.Tensor:
        if broken == "raising":
            raise RuntimeError("no such kernel")
        return inputs.new_zeros(*inputs.shape[:-1], layer.out_features)

    if not packing.available(models.random_model(dtype=torch.float32)):
        pytest.skip("this torch cannot pack")
    monkeypatch.setattr(packing.PackedLinear, "forward", forward)
    model, tokens = models.random_model(dtype=torch.float32), torch.arange(9)
    with torch.inference_mode():
        expected = model(input_ids=tokens[None]).logits
        with caplog.at_level(logging.WARNING):
            assert not packing.pack(model, "mine")
        assert torch.equal(model(input_ids=tokens[None]).logits, expected)
    assert "mine: weights are not packed" in caplog.text and len(caplog.records) == 1


def write(folder: Path, ids: object) -> Path:
    models.random_model(dtype=torch.float32).save_pretrained(folder)
    (folder / DRAFT_VOCABULARY).write_text(str(ids))
    return folder


def test_a_draft_vocabulary_restricts_drafts_and_nothing_else(tmp_path: Path, torch_alone: None) -> None:
    """Guards against logits of the wrong tokens, with the head packed and not."""
    ids, tokens = [7, 3, 50, 0], torch.arange(12)
    for dtype in ("float32", "float64"):
        model = load_drafter(write(tmp_path, ids), dtype)
        full = model.language_model.forward(tokens, model.new_caches(1)[0])
        assert full.shape[-1] == models.VOCABULARY
        before = model.forwards
        assert model.token_ids(torch.arange(4)).tolist() == ids
        assert torch.allclose(model.draft(tokens, model.new_caches(1)[0]), full[:, ids], rtol=1e-4, atol=1e-3)
        assert model.draft(tokens, model.new_caches(1)[0], last=1).shape == (1, 4)
        assert model.forwards == before + 2


@pytest.mark.parametrize("ids", ["[1, 1]", "[]", "[0.5]", "{}", "[[1]]", f"[{models.VOCABULARY}]", "[-1]", "hello"])
def test_a_draft_vocabulary_that_does_not_fit_is_refused(tmp_path: Path, ids: str) -> None:
    """Guards against an index error in the middle of a request."""
    with pytest.raises(UserError, match="draft_vocabulary"):
        load_drafter(write(tmp_path, ids))


def test_a_packed_model_is_told_by_its_weights() -> None:
    """Guards a calibration that is found by them, whoever has packed the model before."""
    model, other = (models.random_model("gpt_neox", dtype=torch.float32, seed=seed) for seed in (0, 1))
    first = LanguageModel(model, packed=True)
    assert first.packed is not None
    assert LanguageModel(model).fingerprint == first.fingerprint != LanguageModel(other).fingerprint


def test_weights_that_changed_are_told_though_the_model_is_held() -> None:
    """Guards rates of a calibration from a model that was trained on while nobody had closed what held it."""
    model = models.random_model(dtype=torch.float32)
    first = LanguageModel(model)
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    assert LanguageModel(model).fingerprint != first.fingerprint
