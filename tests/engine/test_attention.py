"""Attention without copies of shared keys gives what transformers' own gives."""

import pytest
import torch

from dynatree.engine.eager import attention
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from tests.conftest import Build

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]], dtype=torch.bool)


def verified(model: LanguageModel) -> torch.Tensor:
    """Logits of a root with two children behind two tokens."""
    cache = KeyValueCache()
    model.forward(torch.tensor([5, 6]), cache)
    return model.forward(torch.tensor([7, 8, 9]), cache, torch.tensor([2, 3, 3]), MASK)


def test_shared_keys_are_not_copied(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against copies of all keys in each layer, and against other numbers than transformers' own."""
    model = target("llama")
    config = model.model.config
    assert config.num_key_value_heads < config.num_attention_heads, "the tiny Llama shares keys"
    assert config._attn_implementation == attention.NAME
    found = verified(model)
    model.model.set_attn_implementation("sdpa")
    try:
        expected = verified(model)
    finally:
        attention.install(model.model)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)

    def copying(*_: object) -> None:
        raise AssertionError("keys were copied")

    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", copying)
    assert torch.equal(verified(model), found)
    model.model.set_attn_implementation("sdpa")
    try:
        with pytest.raises(AssertionError, match="copied"):
            verified(model)
    finally:
        attention.install(model.model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 3, attention._FEW, attention._FEW + 1])
@pytest.mark.parametrize("kind", ["additive", "boolean"])
def test_few_tokens_and_many_attend_alike(target: Build, dtype: torch.dtype, n: int, kind: str) -> None:
    """Guards against heads paired with another group's keys, a mask of the wrong row, and a scale left out."""
    layer = target("llama").model.model.layers[0].self_attn
    drawn = torch.Generator().manual_seed(n)
    query, key, value = (torch.randn(2, heads, m, 8, generator=drawn) for heads, m in ((6, n), (2, 20), (2, 20)))
    allowed = torch.rand(2, 1, n, 20, generator=drawn) < 0.5
    allowed[..., 0] = True
    # Query heads i of a group share keys and values: repeated in order, as transformers does.
    scores = query @ key.repeat_interleave(3, 1).transpose(2, 3) * 0.3
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    expected = (weights @ value.repeat_interleave(3, 1)).transpose(1, 2)
    mask = allowed if kind == "boolean" else torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)
    found, _ = attention.grouped(layer, query.to(dtype), key.to(dtype), value.to(dtype), mask, scaling=0.3)
    assert found.dtype == dtype and found.shape == (2, n, 6, 8)
    assert torch.allclose(found.float(), expected, atol=0.03 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2"])
def test_other_models_attend_as_before(target: Build, architecture: str) -> None:
    """Guards models whose heads have their own keys."""
    assert target(architecture).model.config._attn_implementation == "sdpa"


def test_what_transformers_alone_can_do_is_left_to_it(target: Build) -> None:
    """Guards against a soft cap of the scores that is silently left out."""
    layer = target("llama").model.model.layers[0].self_attn
    query, key = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 3, 8)
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="softcap"):
        attention.grouped(layer, query, key, key, mask, softcap=30.0)
