"""What a target's state adds to a table of successors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from dynatree.engine import successors
from dynatree.engine.compatibility import pair_up
from dynatree.engine.context import Context, InContext, normed
from dynatree.engine.language_model import LanguageModel
from dynatree.engine.successors import Successors
from dynatree.errors import UserError
from dynatree.generation.sampling import Sampler, Warpers, words_of
from tests import models
from tests.conftest import Build

IDS = np.array([[1, 2], [0, 2], [0, 1]])
LOG_PROBS = np.log(np.array([[0.6, 0.3], [0.5, 0.2], [0.4, 0.4]], np.float32))


def table(context: Context | None) -> Successors:
    """A table of three tokens."""
    return Successors(IDS, LOG_PROBS, context)


def small(levels: int = 2) -> Context:
    """A context of three tokens, of states and embeddings 4 wide."""
    generator = np.random.default_rng(levels)
    shapes = ((5, 4), (5,), (5, 4), (levels - 1, 5, 5), (levels - 1, 5), (2, 5), (2, 4), (3,), (3,))
    return Context(*(generator.normal(size=shape).astype(np.float32) for shape in shapes))


def test_it_computes_what_it_says(target: Build) -> None:
    """Guards the products against torch's, at two levels."""
    context, embedding = small(), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    read = InContext(context, embedding)
    state, (first, second) = np.array([1.0, -2.0, 0.5, 3.0], np.float32), (2, 0)
    weights = {name: torch.from_numpy(part) for name, part in context._asdict().items()}

    def below(before: torch.Tensor, token: int) -> torch.Tensor:
        return torch.nn.functional.silu(before + weights["token"] @ normed(embedding[token]))

    hidden = below(weights["state"] @ normed(torch.from_numpy(state)) + weights["state_bias"], first)
    ours = read.hidden(read.begin(state), first)
    assert ours == pytest.approx(hidden.numpy(), rel=2e-3, abs=2e-3)
    added = normed(embedding[[1, 0]]) @ weights["successor"].T @ (weights["hidden"] @ hidden)
    assert read.added(ours, np.array([1, 0])) == pytest.approx(added.numpy(), rel=5e-3, abs=5e-3)
    deeper = below(weights["deeper"][0] @ hidden + weights["deeper_bias"][0], second)
    assert read.hidden(read.deeper(ours, 0), second) == pytest.approx(deeper.numpy(), rel=5e-3, abs=5e-3)
    assert read.levels == 2 and read.width == 4


def test_what_noise_prefers_is_about_as_many_as_asked_for() -> None:
    """Guards the tokens beside a row's: as many on average, and those that would be drawn first."""
    v, few = 4096, 16
    usual = torch.log_softmax(torch.randn(v, generator=torch.Generator().manual_seed(1)) * 2, 0).numpy()
    context = small()._replace(usual=usual, unseen=np.zeros(v, np.float32))
    read, counts = InContext(context, torch.ones(v, 4)), []
    for place, temperature in enumerate((0.7, 1.0) * 50):
        sampler = Sampler(Warpers(temperature=temperature), 0, 0)
        found = sampler.preferred(read.common, words_of(read.preferring(temperature, few)), place, v)
        scores = usual / temperature + sampler.noise(np.arange(v), place, v)
        assert set(found) == set(np.argsort(-scores)[: len(found)])
        counts.append(len(found))
    assert np.mean(counts) == pytest.approx(few, rel=0.1)
    for _ in range(2):
        others, likely = read.beside(3, np.array([7, 9]), np.array([9, 5, 8]))
        assert others.tolist() == [5, 8] and likely == pytest.approx(usual[[5, 8]] + context.unseen[3])


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Guards a table's file: with a context, of one level, and without."""
    path = tmp_path / "table.safetensors"
    for context in (small(), small(1), None):
        successors.save(table(context), path)
        read = successors.load(path, 3)
        assert read is not None and (read.context is None) == (context is None)
        for ours, theirs in zip(read.context or (), context or (), strict=True):
            assert ours == pytest.approx(theirs, abs=2e-3) and ours.dtype == np.float32
    assert table(small()).fingerprint != table(None).fingerprint


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("token", np.zeros((5, 3), np.float16), r"token is \[5, 3\], expected \[5, 4\]"),
        ("usual", np.zeros(2, np.float16), r"usual is \[2\], expected \[3\]"),
        ("state", np.zeros(4, np.float16), "state is"),
        ("unseen", None, "expected state, state_bias"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, name: str, part: np.ndarray | None, wrong: str) -> None:
    """Guards against a file of another model, or a cut one, that fails while a text is decoded."""
    path = tmp_path / "table.safetensors"
    successors.save(table(small()), path)
    parts = {key: value for key, value in load_file(path).items() if key != f"context.{name}"}
    save_file(parts | ({} if part is None else {f"context.{name}": part}), path)
    with pytest.raises(UserError, match=wrong):
        successors.load(path, 3)


def test_a_graph_is_not_made_again_for_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the start of a process: a graph of a whole target takes a second or two."""
    pytest.importorskip("openvino")
    from dynatree.engine.graph.backend import GraphBackend

    model = LanguageModel(models.random_model("llama", dtype=torch.float32), format="int8")
    drafter = models.related(model)
    monkeypatch.setattr(GraphBackend, "_made", None)
    assert pair_up(model, drafter) == (model.model.config.num_hidden_layers,)


def test_a_table_that_reads_another_target_is_refused(target: Build) -> None:
    """Guards against states of another width, and against a drafter that reads no last layer beside it."""
    model = target()
    drafter = models.related(model)
    last = model.model.config.num_hidden_layers
    assert pair_up(model, drafter) == (last,)
    made = drafter.successors
    assert made is not None and made.context is not None
    drafter.successors = made._replace(context=small())
    with pytest.raises(UserError, match=r"that reads states of width 4, target .* has 32"):
        pair_up(model, drafter)
    drafter.successors, drafter.reads = made, (1,)
    with pytest.raises(UserError, match=rf"reads what is behind layer {last} of .*; train it with that as the last"):
        pair_up(model, drafter)
