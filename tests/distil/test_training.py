"""The loss is what it says, training learns and leaves the embedding alone, and the seed decides everything."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from dynatree.distil import labels
from dynatree.distil.recipe import Labels
from dynatree.distil.student import add_fusion, shrink, trained_part
from dynatree.distil.text import collect, cut, vocabulary_order
from dynatree.distil.training import Loss, Training, hidden_states
from tests import models
from tests.distil.worlds import DATASETS, LENGTH, recipe

TEXT = collect(DATASETS, {}, 0.3, 0)


@pytest.fixture(params=["llama", "gpt_neox"])
def target(request: pytest.FixtureRequest) -> PreTrainedModel:
    return models.random_model(request.param, dtype=torch.float32, tie_word_embeddings=request.param == "llama")


def order() -> Tensor:
    return vocabulary_order(TEXT, models.VOCABULARY, 0.5)


def trained(target: PreTrainedModel, folder: Path, seed: int = 0, **changes: object) -> Training:
    wanted = recipe(**changes)
    drafter = shrink(target, wanted.layers, wanted.norm_scale)
    training = Training(drafter, wanted, TEXT, order(), folder, seed)
    training.on_text()
    if wanted.labels:
        training.on_labels(labels.write_shards(target, TEXT, wanted.labels, LENGTH, folder / "labels", seed))
    return training


def finish(training: Training, shards: list[Path]) -> None:
    training.on_text()
    training.on_labels(shards)


def weights(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trained_part(training.drafter).items()}


def test_training_learns_and_leaves_embedding_and_head_alone(target: PreTrainedModel, tmp_path: Path) -> None:
    """Guards against a loss that does not reach the layers, and against a vocabulary that drifts from the target's."""
    training = trained(target, tmp_path, tokens=60 * 4 * LENGTH, labels=None)
    assert training.curve[-1]["loss"] < 0.7 * training.curve[0]["loss"]
    assert training.tokens == 60 * 4 * LENGTH
    for part in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(training.drafter, part)().weight, getattr(target, part)().weight)
    assert not training.drafter.training


def test_labels_teach_the_target(target: PreTrainedModel, tmp_path: Path) -> None:
    """Guards against labels of other positions: what the target says must become likelier, position by position."""
    wanted = Labels(tokens=3000, top=20, rows=8, prompt_tokens=8, new_tokens=8, passes=3)
    training = trained(target, tmp_path, tokens=1, layers=[0, 1], norm_scale=0.3, labels=wanted)
    rows = cut(TEXT.held_out, TEXT.weights, 8, LENGTH, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        said = target(rows).logits.argmax(-1, keepdim=True)
        before, after = (
            model(rows).logits.log_softmax(-1).gather(-1, said).mean()
            for model in (shrink(target, [0, 1], 0.3).eval(), training.drafter)
        )
    assert after > before + 0.2


def test_every_level_learns_to_read(target: PreTrainedModel, tmp_path: Path) -> None:
    """Guards against labels or states of other positions, and against a level that the loss does not reach."""
    penalties = {"top": 20, "rows": 8, "prompt_tokens": 8, "new_tokens": 8, "passes": 4}
    wanted = recipe(tokens=0, reads=[1, 2], levels=3, negatives=0, labels={"tokens": 3000, **penalties})
    drafter = shrink(target, [1], 1.0)
    add_fusion(drafter, target, wanted.reads)
    training = Training(drafter, wanted, TEXT, order(), tmp_path, 0)
    shards = labels.write_shards(target, TEXT, wanted.labels, LENGTH, tmp_path / "labels", 0, wanted.reads)
    rows = cut(TEXT.held_out, TEXT.weights, 8, LENGTH, torch.Generator().manual_seed(0))
    held = labels.score(target, rows, 1, wanted.reads)

    @torch.inference_mode()
    def agreeing() -> list[Tensor]:
        head = drafter.get_output_embeddings().weight
        return [
            (hidden @ head.T).log_softmax(-1).gather(-1, held["ids"][:, first:].long()).mean()
            for first, hidden in hidden_states(drafter, held, wanted.levels)
        ]

    before = agreeing()
    finish(training, shards)
    assert all(late > early + 0.5 for early, late in zip(before, agreeing(), strict=True))
    for part in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(drafter, part)().weight, getattr(target, part)().weight)


def test_the_loss_of_levels_is_their_weighted_mean(target: PreTrainedModel) -> None:
    """Guards the arithmetic: each level by the labels of its positions, with 0.8 of the weight of the one before."""
    wanted = recipe(vocabulary=models.VOCABULARY, negatives=0, tokens=0, reads=[1, 2], levels=3)
    drafter = shrink(target, [0], 1.0)
    add_fusion(drafter, target, wanted.reads)
    rows = labels.score(target, torch.arange(2 * LENGTH).view(2, LENGTH), 1, wanted.reads)
    rows |= {"ids": rows["ids"].long(), "probabilities": torch.ones_like(rows["probabilities"])}
    rows["states"] = rows["states"].clone()  # made in inference mode
    head = drafter.get_output_embeddings().weight
    with torch.no_grad():
        losses = [
            cross_entropy((hidden @ head.T).flatten(0, 1), rows["ids"][:, first:, 0].flatten())
            for first, hidden in hidden_states(drafter, rows, wanted.levels)
        ]
    mean = (losses[0] + 0.8 * losses[1] + 0.64 * losses[2]) / (1 + 0.8 + 0.64)
    found = Loss(drafter, order(), wanted)(drafter, rows, False, torch.Generator())
    torch.testing.assert_close(found, mean, atol=1e-3, rtol=0)


def test_a_fusion_starts_at_the_size_of_the_states(target: PreTrainedModel) -> None:
    """Guards against a copied layer that is fed states of another size than it was trained on."""
    drafter = shrink(target, [1], 1.0)
    add_fusion(drafter, target, (1, 2))
    states = labels.score(target, torch.arange(2 * LENGTH).view(2, LENGTH), 1, (1, 2))["states"].flatten(0, 1)
    drafter.fusion.scale(states)
    with torch.inference_mode():
        ratio = drafter.fusion.fused(states) / states[:, states.shape[1] // 2 :]
    assert ratio.median().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(ratio.std(-1), torch.zeros(len(states)), atol=1e-4, rtol=0)


def test_the_seed_decides_everything(target: PreTrainedModel, tmp_path: Path) -> None:
    """Guards against random state from elsewhere: a drafter can be made again."""
    found = []
    for number, (seed, noise) in enumerate(((3, 0), (3, 1), (4, 0))):
        torch.manual_seed(noise)
        found.append(weights(trained(target, tmp_path / str(number), seed)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def batch(target: PreTrainedModel, top: int) -> dict[str, Tensor]:
    shard = labels.score(target, torch.arange(2 * LENGTH).view(2, LENGTH), top)
    return {name: value.long() if name != "probabilities" else value.float() for name, value in shard.items()}


def test_loss_over_the_whole_vocabulary_is_the_plain_one(target: PreTrainedModel) -> None:
    """Guards the arithmetic: with every token drafted it is cross-entropy to the label, or to the distribution."""
    wanted = recipe(vocabulary=models.VOCABULARY, negatives=4)
    drafter = shrink(target, [0], 1.0)
    loss = Loss(drafter, order(), wanted)
    generator = torch.Generator().manual_seed(0)
    rows = batch(target, models.VOCABULARY)
    logits = drafter(rows["tokens"]).logits.flatten(0, 1).detach()
    hard = {**rows, "ids": rows["ids"][..., :1], "probabilities": torch.ones_like(rows["probabilities"][..., :1])}
    torch.testing.assert_close(
        loss(drafter, hard, False, generator), cross_entropy(logits, rows["ids"][..., 0].flatten()), atol=1e-3, rtol=0
    )
    with torch.no_grad():
        distribution = target(rows["tokens"]).logits.softmax(-1).flatten(0, 1)
        mixed = (1 - wanted.labels.argmax_weight) * distribution
        mixed[torch.arange(len(mixed)), distribution.argmax(-1)] += wanted.labels.argmax_weight
    torch.testing.assert_close(loss(drafter, rows, True, generator), cross_entropy(logits, mixed), atol=5e-3, rtol=0)


def test_tokens_without_a_label_count_as_one(target: PreTrainedModel) -> None:
    """Guards calibration: drawn negatives stand for all tokens outside the vocabulary, on average over draws."""
    drafter = shrink(target, [0], 1.0)
    loss = Loss(drafter, order(), recipe(vocabulary=30, negatives=20))
    drafted, outside = int(order()[3]), int(order()[-1])
    rows = {"tokens": torch.arange(LENGTH)[None], "ids": torch.tensor([drafted, outside]).expand(1, LENGTH, 2)}
    rows["probabilities"] = torch.tensor([0.5, 0.2]).expand(1, LENGTH, 2)
    with torch.inference_mode():
        one = drafter(rows["tokens"]).logits[0].softmax(-1)[:, drafted]
        wanted = -(0.5 * one.log() + 0.5 * (1 - one).log()).mean()
        draws = [loss(drafter, rows, False, torch.Generator().manual_seed(i)) for i in range(30)]
    torch.testing.assert_close(torch.stack(draws).mean(), wanted, atol=0.05, rtol=0)


def test_a_checkpoint_goes_on_as_if_nothing_had_been(target: PreTrainedModel, tmp_path: Path) -> None:
    """Guards against a resume that draws other batches or forgets the optimiser: both phases, stopped in the middle."""

    class Stop(Exception):
        pass

    whole = weights(trained(target, tmp_path / "whole"))
    wanted = recipe()
    for stop in (7, 14):
        folder = tmp_path / str(stop)
        shards = labels.write_shards(target, TEXT, wanted.labels, LENGTH, folder / "labels", 0)

        def start(folder: Path = folder) -> Training:
            drafter = shrink(copy.deepcopy(target), wanted.layers, wanted.norm_scale)
            return Training(drafter, wanted, TEXT, order(), folder, 0, checkpoint_steps=2)

        stopped, real = start(), Loss.__call__

        def call(*arguments: object, training: Training = stopped, last: int = stop, real: object = real) -> Tensor:
            if training.step == last:
                raise Stop
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loss, "__call__", call)
            with pytest.raises(Stop):
                finish(stopped, shards)
        resumed = start()
        assert resumed.step == stop - stop % 2
        finish(resumed, shards)
        assert all(torch.equal(whole[name], value) for name, value in weights(resumed).items())


class Ticking:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def test_a_budget_ends_training_and_the_rate_falls_with_it(
    target: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a rate that is still high when time is up, and against one phase that takes the other's time."""
    rates: list[tuple[bool, float]] = []

    def watched(self: Loss, drafter: PreTrainedModel, rows: object, soft: bool, generator: object) -> Tensor:
        rates.append((soft, training[0].optimiser.param_groups[0]["lr"] / wanted.learning_rate))
        return real(self, drafter, rows, soft, generator)

    wanted, real, training = recipe(tokens=64 * 2000, minutes=2.0), Loss.__call__, []
    wanted = wanted.model_copy(update={"labels": wanted.labels.model_copy(update={"tokens": 64 * 500, "passes": 4})})
    shards = labels.write_shards(target, TEXT, recipe().labels, LENGTH, tmp_path / "labels", 0) * 500
    monkeypatch.setattr(Loss, "__call__", watched)
    monkeypatch.setattr("dynatree.distil.training.time", Ticking())
    training.append(Training(shrink(target, [0], 0.5), wanted, TEXT, order(), tmp_path, 0, checkpoint_steps=10**6))
    finish(training[0], shards)
    text, labelled = ([rate for soft, rate in rates if soft is kind] for kind in (False, True))
    assert 40 < len(text) < 70 and 40 < len(labelled) < 70  # a minute each: a step reads the clock once
    assert text[-1] == 1.0
    assert labelled == sorted(labelled, reverse=True) and 0 < labelled[-1] < 0.05
    assert 120 <= training[0].seconds < 125
    assert training[0].ends[0][1] == pytest.approx(60, abs=3)
    resumed = Training(shrink(target, [0], 0.5), wanted, TEXT, order(), tmp_path, 0)
    finish(resumed, shards)
    assert (resumed.step, resumed.seconds) == (training[0].step, training[0].seconds)
