"""A context that is trained on labels: what it learns, and that a stop changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from dynatree.distil import context, labels
from dynatree.distil.make import make
from dynatree.distil.recipe import ContextLabels, Labels
from dynatree.errors import UserError
from tests.distil.worlds import DATASETS, reading_recipe, recipe, target_folder

TOKENS, WIDTH, ROWS, LENGTH = 12, 6, 32, 20
KNOBS: dict[str, Any] = {"width": 16, "rank": 8, "passes": 60, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """Labels of a text in which the sign of the state before a token says which of two tokens comes after it."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(TOKENS, WIDTH, generator=generator)
    signs = torch.randint(0, 2, (ROWS, LENGTH), generator=generator)
    tokens = torch.randint(0, TOKENS, (ROWS, LENGTH), generator=generator)
    # The label of place j is of the token behind it, by the sign before it.
    before = torch.cat([signs[:, :1], signs[:, :-1]], dim=1)
    ids = torch.stack([(tokens + 1 + before) % TOKENS, (tokens + 2 - before) % TOKENS], dim=-1)
    states = torch.randn(ROWS, LENGTH, WIDTH, generator=generator) * 0.1
    states[..., 0] += signs * 2 - 1
    path = tmp_path_factory.mktemp("labels") / "00000.safetensors"
    shard = {"tokens": tokens.int(), "ids": ids.int(), "states": states.contiguous()}
    save_file(shard | {"probabilities": torch.tensor([0.9, 0.1]).half().expand(ROWS, LENGTH, 2).contiguous()}, path)
    return path, embedding


def learning(world: tuple[Path, torch.Tensor], folder: Path, **changes: Any) -> context.Training:
    """A training on it."""
    path, embedding = world
    table = labels.successors_of([path], TOKENS, 4)
    return context.Training(ContextLabels(**{**KNOBS, **changes}), table, embedding, [path], folder, seed=0)


def test_it_learns_what_a_table_cannot_know(world: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """Guards that states are read, and those of the position before: a table is right half of the time there."""
    path, embedding = world
    table = labels.successors_of([path], TOKENS, 4)
    learnt = table._replace(context=learning(world, tmp_path).run())
    found = context.agreement(learnt, embedding, load_file(path))
    assert found["table_top1"] < 0.7 and found["context_top1"] > 0.95
    assert found["table_top3"] <= found["context_top3"] <= 1


def test_a_stopped_training_goes_on_to_the_same_weights(
    world: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a stop that changes the end, and against a file that is no checkpoint."""
    whole = learning(world, tmp_path / "whole", passes=6).run()
    monkeypatch.setattr(context, "_CHECKPOINT", 5)
    stopped = learning(world, tmp_path / "stopped", passes=6)
    loss = stopped._loss

    def until(*rows: torch.Tensor) -> torch.Tensor:
        if stopped.step == 7:
            raise KeyboardInterrupt
        return loss(*rows)

    monkeypatch.setattr(stopped, "_loss", until)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    again = learning(world, tmp_path / "stopped", passes=6)
    assert again.step == 5
    for ours, theirs in zip(again.run(), whole, strict=True):
        assert np.array_equal(ours, theirs)
    (tmp_path / "stopped" / "context.pt").write_bytes(b"short")
    with pytest.raises(UserError, match="not a checkpoint of this training"):
        learning(world, tmp_path / "stopped")


def test_a_table_of_more_successors_than_labels_have_is_refused() -> None:
    """Guards rows that are padded: what pads them stands for a token that may be there."""
    keys = recipe().labels.model_dump()
    with pytest.raises(ValidationError, match=r"labels\.successors: 9; labels say 8 of each token \(labels\.top\)"):
        Labels(**{**keys, "top": 8, "successors": 9})
    assert Labels(**{**keys, "top": 8, "successors": 8}).successors == 8


def test_a_context_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Guards the hours of labelling: what would fail behind them is said before."""
    keys = {**recipe().labels.model_dump(), "successors": 0}
    with pytest.raises(ValidationError, match=r"labels\.context: it goes with a table of successors"):
        Labels(**keys)
    target = target_folder(tmp_path / "target")
    with pytest.raises(UserError, match=r"reads: \[1\]; labels.context reads what is behind .* last layer, 2"):
        make(target, DATASETS, reading_recipe(reads=[1]), seed=0, work=tmp_path / "work")
    assert not (tmp_path / "work").exists()
