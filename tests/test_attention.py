"""Attention without copies of shared keys gives what transformers' own gives."""

import pytest
import torch

from dynatree import attention
from dynatree.cache import KeyValueCache
from dynatree.model import LanguageModel
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
