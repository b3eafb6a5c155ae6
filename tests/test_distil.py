"""Making a drafter from a target's layers: a standard checkpoint, trained reproducibly, its embedding untouched."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from dynatree import distil
from dynatree.errors import UserError
from tests import models

# A text that loops over half of the vocabulary, so that there is something to learn.
TEXT = (torch.arange(600) * 7 % 30).long()
LENGTH = 16


@pytest.fixture(params=["llama", "gpt_neox"])
def target(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Both supported layouts: a tied embedding and one apart."""
    return models.random_model(request.param, dtype=torch.float32, tie_word_embeddings=request.param == "llama")


def train(drafter: PreTrainedModel, text: Tensor = TEXT, seed: int = 0, steps: int = 60, **changes: float) -> list:
    keys = {"batch": 4, "length": LENGTH, "learning_rate": 5e-3, "vocabulary": 40, "negatives": 4, "repeat_share": 0.25}
    return distil.train(drafter, text, **{**keys, "tokens": steps * 4 * LENGTH, **changes}, seed=seed)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def frozen(model: PreTrainedModel) -> list[Tensor]:
    return [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]


def test_all_layers_give_the_target_itself(target: PreTrainedModel) -> None:
    """Guards against a part that is not copied and keeps its random start."""
    drafter = distil.shrink(target, [0, 1], norm_scale=1.0).eval()
    ids = TEXT[None, :20]
    with torch.inference_mode():
        assert torch.equal(drafter(ids).logits, target(ids).logits)


def test_layers_are_copied_in_the_order_given(target: PreTrainedModel) -> None:
    """Guards against taking the first layers whatever was asked for, or sharing storage with the target."""
    drafter = distil.shrink(target, [1], norm_scale=1.0)
    assert drafter.config.num_hidden_layers == 1
    copied, original = drafter.base_model.layers[0], target.base_model.layers[1]
    for ours, theirs in zip(copied.parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def test_result_is_a_standard_checkpoint_that_assists(target: PreTrainedModel, tmp_path: Path) -> None:
    """Guards against a drafter that only this project can load."""
    drafter = distil.shrink(target, [0], norm_scale=0.5)
    train(drafter, steps=2)
    drafter.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == 1
    ids = TEXT[None, :8]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, drafter(ids).logits)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 12}
    assert torch.equal(target.generate(ids, assistant_model=loaded, **options), target.generate(ids, **options))


def test_training_learns_and_leaves_embedding_and_head_alone(target: PreTrainedModel) -> None:
    """Guards against a loss that does not reach the layers, and against a vocabulary that drifts from the target's."""
    drafter = distil.shrink(target, [0, 1], norm_scale=0.5)
    before, start = frozen(drafter), weights(drafter)
    curve = train(drafter)
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    assert curve[-1]["tokens"] == 60 * 4 * LENGTH
    for old, new in zip(before, frozen(drafter), strict=True):
        assert torch.equal(old, new)
    assert any(not torch.equal(start[name], value) for name, value in drafter.state_dict().items())
    assert not drafter.training


def test_the_seed_decides_everything(target: PreTrainedModel) -> None:
    """Guards against random state from elsewhere: a drafter can be made again."""
    trained = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(noise)
        drafter = distil.shrink(target, [0], norm_scale=0.5)
        train(drafter, seed=seed, steps=4)
        trained.append(weights(drafter))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert any(not torch.equal(trained[0][name], trained[2][name]) for name in trained[0])


def test_loss_of_the_whole_vocabulary_is_the_plain_one(target: PreTrainedModel) -> None:
    """Guards the sampled softmax: with every token a candidate it is cross-entropy; without negatives it still runs."""
    drafter = distil.shrink(target, [0], norm_scale=1.0)
    text = torch.arange(LENGTH + 1) % 30  # one window only: batches are known
    with torch.inference_mode():
        logits = drafter(text[None, : LENGTH - 1]).logits[0]
    wanted = float(torch.nn.functional.cross_entropy(logits, text[1:LENGTH]))
    curve = train(drafter, text, steps=1, vocabulary=models.VOCABULARY, repeat_share=0.0)
    assert curve[0]["loss"] == pytest.approx(wanted, abs=1e-3)
    assert train(drafter, steps=1, negatives=0)[0]["loss"] > 0


def test_a_repeated_span_stands_twice() -> None:
    """Guards against batches that never hold a repetition, or reach beyond the row."""
    generator = torch.Generator().manual_seed(0)
    text = torch.arange(1000)
    for _ in range(50):
        for row in distil._batch(text, 2, LENGTH, 1.0, generator).tolist():
            assert len(row) == LENGTH
            assert len(set(row)) < LENGTH
        plain = distil._batch(text, 2, LENGTH, 0.0, generator)
        assert torch.equal(plain - plain[:, :1], torch.arange(LENGTH).expand(2, -1))


def test_agreement_counts_first_and_first_three_choices(target: PreTrainedModel) -> None:
    """Guards the numbers in the manifest: 1 for the target itself, and never outside 0..1."""
    text = TEXT[:100]
    same = distil.agreement(distil.shrink(target, [0, 1], 1.0).eval(), target, text, 32)
    assert same == {"top1": 1.0, "top3": 1.0, "positions": 96}
    other = distil.agreement(distil.shrink(target, [1], 1.0).eval(), target, text, 32)
    assert 0 <= other["top1"] <= other["top3"] <= 1


@pytest.mark.parametrize("layers", [[2], [0, 2], [-1]])
def test_a_layer_that_is_not_there_is_refused(target: PreTrainedModel, layers: list[int]) -> None:
    """Guards against an index error, or Python's negative index, after a long download."""
    with pytest.raises(UserError, match=r"layers: .*the target has layers 0\.\.1"):
        distil.shrink(target, layers, 1.0)


def test_an_unknown_architecture_is_refused() -> None:
    """Guards against copying layers under wrong names."""
    with pytest.raises(UserError, match="'gpt2' is not supported; choose one of llama, gpt_neox"):
        distil.shrink(models.random_model("gpt2"), [0], 1.0)


def test_too_little_text_is_refused(target: PreTrainedModel) -> None:
    """Guards against an obscure error of the random generator, or a division by zero after training."""
    drafter = distil.shrink(target, [0], 1.0)
    with pytest.raises(UserError, match="tuning text has 16 tokens; give at least 17"):
        train(drafter, TEXT[:LENGTH])
    with pytest.raises(UserError, match="evaluation text has 5 tokens; give at least 16"):
        distil.agreement(drafter, target, TEXT[:5], LENGTH)
