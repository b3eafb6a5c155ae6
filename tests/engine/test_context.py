"""What a target's state adds to a table of successors."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from dynatree.engine import context as context_module
from dynatree.engine import successors
from dynatree.engine.compatibility import pair_up
from dynatree.engine.context import Context, InContext, normed
from dynatree.engine.graph import kernels
from dynatree.engine.graph.kernels.rows import Rows
from dynatree.engine.language_model import LanguageModel
from dynatree.engine.successors import Successors
from dynatree.errors import UserError
from dynatree.generation.sampling import Sampler, Warpers, gumbel, words_of
from tests import models
from tests.compiler import BOTH_WAYS, BY_LIBRARY, needs_compiler
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


def made() -> Rows:
    """The library's functions, whether or not a graph has its operations."""
    return kernels.made(Rows)


@pytest.fixture(params=BOTH_WAYS)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts by numpy alone, then by the library."""
    monkeypatch.setattr(context_module, "rows", made if request.param == BY_LIBRARY else lambda: None)


def test_it_computes_what_it_says(by: None) -> None:
    """Guards the products against torch's, at two levels."""
    context, embedding = small(), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    read = InContext(context, embedding)
    state, (first, second) = np.array([1.0, -2.0, 0.5, 3.0], np.float32), (2, 0)
    weights = {name: torch.from_numpy(part) for name, part in context._asdict().items()}

    def below(before: torch.Tensor, token: int) -> torch.Tensor:
        return torch.nn.functional.silu(before + weights["token"] @ normed(embedding[token]))

    hidden = below(weights["state"] @ normed(torch.from_numpy(state)) + weights["state_bias"], first)
    ours = read.hidden(state, first)
    assert ours == pytest.approx(hidden.numpy(), rel=2e-3, abs=2e-3)
    added = normed(embedding[[1, 0]]) @ weights["successor"].T @ (weights["hidden"] @ hidden)
    scores = np.array([-0.5, -1.5], np.float32)
    told = torch.from_numpy(scores) + added
    told += torch.from_numpy(scores).logsumexp(0) - told.logsumexp(0)
    ids, found = read.row(first, np.array([1, 0]), scores, ours)
    assert ids.tolist() == [1, 0] and found == pytest.approx(told.numpy(), rel=5e-3, abs=5e-3)
    deeper = below(weights["deeper"][0] @ hidden + weights["deeper_bias"][0], second)
    assert read.deeper(ours, 0, second) == pytest.approx(deeper.numpy(), rel=5e-3, abs=5e-3)
    assert read.levels == 2 and read.width == 4


def test_what_noise_prefers_is_about_as_many_as_asked_for(by: None) -> None:
    """Guards the tokens beside a row's: as many on average, those that would be drawn first, and none twice."""
    v, few = 4096, 16
    usual = torch.log_softmax(torch.randn(v, generator=torch.Generator().manual_seed(1)) * 2, 0).numpy()
    context = small()._replace(usual=usual, unseen=np.full(v, -0.5, np.float32))
    read, counts = InContext(context, torch.ones(v, 4)), []
    for place, temperature in enumerate((0.7, 1.0) * 50):
        sampler = Sampler(Warpers(temperature=temperature), 0, 0)
        scores = usual / temperature + sampler.noise(np.arange(v), place, v)
        best = np.argsort(-scores)
        kept, own = np.array([int(best[1]), int(best[-1])]), np.array([-1.0, -9.0], np.float32)
        most = words_of(read.preferring(temperature, few))
        ids, found = read.row(3, kept, own, np.zeros(5, np.float32), sampler.words(place, v), most)
        others = ids[2:]
        assert ids[:2].tolist() == kept.tolist() and set(others) == {*best[: len(others) + 1]} - {int(best[1])}
        # All embeddings are alike, so that nothing is said of one that is not said of all.
        assert found == pytest.approx([*own, *(usual[others] - 0.5)], abs=1e-4)
        counts.append(len(others) + 1)
    assert np.mean(counts) == pytest.approx(few, rel=0.1)


@needs_compiler
@settings(max_examples=100)
@given(st.data())
def test_what_is_near_the_best_is_numpys(data: st.DataObject) -> None:
    """Guards what is learnt of logits: ties, -inf, a number that is not one, and more than are given."""
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = data.draw(st.integers(1, 300))
    scores = (data.draw(st.sampled_from([0.0, 1.0, 10.0])) * chance.standard_normal(size)).astype(np.float32)
    scores[chance.random(size) < data.draw(st.sampled_from([0.0, 0.2, 1.0]))] = -np.inf
    found = made().near(scores, 4.6)
    assert found is not None and found.tolist() == (scores > scores.max() - 4.6).nonzero()[0].tolist()
    assert made().near(np.zeros(5_000, np.float32), 1.0) is None


@needs_compiler
@pytest.mark.parametrize("few", [1, 3, 40])
def test_the_best_with_noise_are_numpys(few: int) -> None:
    """Guards what is proposed: with noise and without, as log-probabilities or as they are, best first, few or all."""
    chance = np.random.default_rng(few)
    for size in (1, 7, 30):
        ids = chance.choice(models.VOCABULARY, size, replace=False)
        scores, words = chance.normal(size=size).astype(np.float32), chance.integers(2**32, size=models.VOCABULARY)
        # Some are impossible, which is no reason to have another twice.
        scores[2:6] = -np.inf
        for noise in (words.astype(np.uint32), None):
            for whole in (True, False):
                sums = scores if noise is None else scores + gumbel(noise[ids])
                sums = sums - np.logaddexp.reduce(sums) if whole else sums
                order = np.argsort(-sums, kind="stable")[:few]
                tokens, found = made().best(scores, ids, noise, whole, few)
                assert tokens == ids[order].tolist() and found == pytest.approx(sums[order].tolist(), abs=1e-4)


@needs_compiler
def test_half_precision_is_read_without_the_processors_help(tmp_path: Path) -> None:
    """Guards older processors: all numbers of half precision, normal and denormal ones, as numpy has them."""
    source, binary = tmp_path / "halves.cpp", tmp_path / "halves.so"
    header = kernels.SOURCES / "rows.hpp"
    source.write_text(
        f'#include "{header}"\nextern "C" float read_half(uint16_t bits) {{ return dynatree::half(bits); }}\n'
    )
    options = ["-O2", "-std=c++20", "-shared", "-fPIC", "-march=x86-64"]
    compiler = kernels._compiler()
    assert compiler is not None
    subprocess.run(
        [*compiler, *options, *kernels._openvino(), str(source), "-o", str(binary), *kernels._linked()], check=True
    )
    read = ctypes.CDLL(str(binary)).read_half
    read.argtypes, read.restype = (ctypes.c_uint16,), ctypes.c_float
    every = np.arange(2**16, dtype=np.uint16)
    numbers = every.view(np.float16).astype(np.float32)
    finite = np.isfinite(numbers)
    assert [read(int(bits)) for bits in every[finite]] == numbers[finite].tolist()


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
