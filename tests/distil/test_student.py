"""A drafter made of its target's layers: copied in order, a standard checkpoint, its trained part apart."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dynatree.distil.student import add_fusion, load_trained_part, shrink, trained_part
from dynatree.errors import UserError
from tests import models

IDS = (torch.arange(20) * 7 % 30)[None]


@pytest.fixture(params=["llama", "gpt_neox", "mistral", "qwen2", "qwen3"])
def target(request: pytest.FixtureRequest) -> PreTrainedModel:
    """All supported architectures: with a tied embedding and with one apart."""
    return models.random_model(request.param, dtype=torch.float32, tie_word_embeddings=request.param == "llama")


def test_all_layers_give_the_target_itself(target: PreTrainedModel) -> None:
    """Guards against a part that is not copied and keeps its random start."""
    drafter = shrink(target, [0, 1], norm_scale=1.0).eval()
    with torch.inference_mode():
        assert torch.equal(drafter(IDS).logits, target(IDS).logits)


def test_layers_are_copied_in_the_order_given(target: PreTrainedModel) -> None:
    """Guards against taking the first layers whatever was asked for, or sharing storage with the target."""
    drafter = shrink(target, [1], norm_scale=1.0)
    assert drafter.config.num_hidden_layers == 1
    copied, original = drafter.base_model.layers[0], target.base_model.layers[1]
    for ours, theirs in zip(copied.parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def test_result_is_a_standard_checkpoint_that_assists(target: PreTrainedModel, tmp_path: Path) -> None:
    """Guards against a drafter that only this project can load."""
    drafter = shrink(target, [0], norm_scale=0.5).eval()
    drafter.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == 1
    ids = IDS[:, :8]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, drafter(ids).logits)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 12}
    assert torch.equal(target.generate(ids, assistant_model=loaded, **options), target.generate(ids, **options))


def test_the_trained_part_is_all_but_embedding_and_head(target: PreTrainedModel) -> None:
    """Guards against shipping the target's embedding, and against a part that misses a weight."""
    drafter, other = shrink(target, [0], 0.5), shrink(target, [1], 1.0)
    part = trained_part(drafter)
    assert not any("embed" in name or "head" in name for name in part)
    load_trained_part(other, {name: value.half() for name, value in part.items()})
    for name, value in trained_part(other).items():
        assert torch.equal(value, part[name].half().float()), name


def test_a_part_of_another_shape_is_refused(target: PreTrainedModel) -> None:
    """Guards against weights that are silently left out."""
    with pytest.raises(UserError, match="other layers or sizes"):
        load_trained_part(shrink(target, [0, 1], 1.0), trained_part(shrink(target, [0], 1.0)))


@pytest.mark.parametrize("layers", [[2], [0, 2], [-1]])
def test_a_layer_that_is_not_there_is_refused(target: PreTrainedModel, layers: list[int]) -> None:
    """Guards against an index error, or Python's negative index, after a long download."""
    with pytest.raises(UserError, match=r"layers: .*the target has layers 0\.\.1"):
        shrink(target, layers, 1.0)


@pytest.mark.parametrize("reads", [[3], [1, 3], [0]])
def test_states_that_are_not_there_are_refused(target: PreTrainedModel, reads: list[int]) -> None:
    """Guards against an index error, and against Python's negative index for 0."""
    with pytest.raises(UserError, match=r"reads: .*the target has the states behind 1\.\.2 layers"):
        add_fusion(shrink(target, [0], 1.0), target, reads)


def test_an_unknown_architecture_is_refused() -> None:
    """Guards against copying layers under wrong names."""
    supported = "llama, mistral, qwen2, qwen3, gpt_neox"
    with pytest.raises(UserError, match=f"'gpt2' is not supported; choose one of {supported}"):
        shrink(models.random_model("gpt2"), [0], 1.0)
