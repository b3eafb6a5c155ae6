"""Our own attention, by itself: against the plain formula in float64, and where it cannot be had."""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import pytest
from openvino import PartialShape, Type
from openvino import opset13 as op

from dynatree.engine.graph import tree_attention
from dynatree.engine.graph.block_cache import BLOCK
from dynatree.errors import UserError

needs_compiler = pytest.mark.skipif(tree_attention._library() is None, reason="no C++ compiler")
BLOCKS, EPS = 60, 1e-5


class Case(NamedTuple):
    """Heads, groups, size, turned; whether heads are normed; threads."""

    heads: int
    groups: int
    size: int
    turned: int
    normed: bool = False
    threads: int = 1


CASES = [
    Case(9, 3, 64, 64, threads=2),
    Case(4, 4, 16, 4),
    Case(2, 2, 80, 20),  # Pythia-2.8B's heads, which are no whole vectors of some
    Case(14, 2, 64, 64),
    Case(16, 8, 128, 128, normed=True, threads=2),
    Case(6, 1, 5, 4),
]


class Rows(NamedTuple):
    """Of each place its row, positions before it, and blocks; what stands in the pool; what the rows are made of."""

    spread: list[int]
    past: list[int]
    blocks: list[list[int]]
    keys: np.ndarray
    values: np.ndarray
    z: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    norms: list[np.ndarray]


def some_rows(case: Case, pasts: list[int], seed: int) -> Rows:
    """A row at each of `pasts` after one text, in a last block of its own; the first stands in a further place, too."""
    chance, blocks = np.random.default_rng(seed), [*range(1, BLOCKS)]
    random.Random(seed).shuffle(blocks)
    shared = [blocks.pop() for _ in range(max(pasts) // BLOCK)]
    own = [[*shared[: past // BLOCK], blocks.pop()] for past in pasts]
    places = [*range(len(pasts)), 0]

    def normal(*shape: int) -> np.ndarray:
        return chance.standard_normal(shape, dtype=np.float32)

    angles = normal(len(places), case.turned)
    angles[-1] = angles[0]
    return Rows(
        places,
        [*pasts, pasts[0] % BLOCK],
        [*own, [blocks.pop()]],
        normal(BLOCKS, case.groups, case.size, BLOCK),
        normal(BLOCKS, case.groups, BLOCK, case.size),
        normal(len(pasts), (case.heads + 2 * case.groups) * case.size),
        np.cos(angles),
        np.sin(angles),
        [normal(case.size) for _ in range(2)] if case.normed else [],
    )


def run(case: Case, rows: Rows) -> np.ndarray:
    """What a graph of the operation alone gives, which writes into the pool of `rows`."""
    begins = np.cumsum([0, *map(len, rows.blocks)]).astype(np.int32)
    given = [rows.z, rows.cos[:, None, None], rows.sin[:, None, None]]
    given += [np.array(rows.spread), np.array(rows.past, np.int32)]
    given += [np.concatenate(rows.blocks).astype(np.int32), begins, rows.keys, rows.values]
    types = {np.dtype(np.float32): Type.f32, np.dtype(np.int32): Type.i32, np.dtype(np.int64): Type.i64}
    inputs = [op.parameter(PartialShape([-1] * part.ndim), types[part.dtype]) for part in given]
    inputs[0] = op.parameter(PartialShape([-1, rows.z.shape[1]]), Type.f32)
    made = tree_attention.node(
        [*inputs, *map(op.constant, rows.norms)], heads=case.heads, groups=case.groups, size=case.size, eps=EPS
    )
    settings = {"INFERENCE_NUM_THREADS": case.threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(ov.Model([made], inputs), "CPU", settings).create_infer_request()
    for place, part in enumerate(given):
        request.set_input_tensor(place, ov.Tensor(np.ascontiguousarray(part), shared_memory=True))
    request.infer()
    found: np.ndarray = request.get_output_tensor(0).data.copy()
    return found


def head(case: Case, rows: Rows, place: int, at: int, norm: int | None) -> np.ndarray:
    """The head of a place's row that begins at so many heads, normed and rotated where `norm` says which."""
    x = rows.z[rows.spread[place], at * case.size : (at + 1) * case.size].astype(np.float64)
    if norm is None:
        return x
    if rows.norms:
        x = x / np.sqrt((x * x).mean() + EPS) * rows.norms[norm]
    half, rest = case.turned // 2, x[case.turned :]
    low, high = x[:half], x[half : case.turned]
    cos, sin = rows.cos[place], rows.sin[place]
    return np.concatenate([low * cos[:half] - high * sin[:half], high * cos[half:] + low * sin[half:], rest])


def expected(case: Case, rows: Rows, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Softmax of scaled products, by the formula; writes first."""
    for place, past in enumerate(rows.past):
        block, slot = rows.blocks[place][past // BLOCK], past % BLOCK
        for group in range(case.groups):
            keys[block, group, :, slot] = head(case, rows, place, case.heads + group, 1)
            values[block, group, slot] = head(case, rows, place, case.heads + case.groups + group, None)
    found = []
    for row in range(len(rows.z)):
        seen = [(rows.blocks[row][at // BLOCK], at % BLOCK) for at in range(rows.past[row] + 1)]
        for one in range(case.heads):
            group = one // (case.heads // case.groups)
            query = head(case, rows, row, one, 0) / np.sqrt(case.size)
            scores = np.array([query @ keys[block, group, :, slot] for block, slot in seen])
            weights = np.exp(scores - scores.max())
            found.append((weights / weights.sum()) @ np.array([values[block, group, slot] for block, slot in seen]))
    return np.array(found).reshape(len(rows.z), -1)


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_attention(case: Case) -> None:
    """Guards norms, rotation, groups of heads, masks at the ends of blocks and segments, and further places."""
    for seed, pasts in enumerate([[0], [3, 31, 32], [127, 128, 129, 130], [300] * 8, [5, 255, 256, 400] * 3]):
        rows = some_rows(case, pasts, seed)
        keys, values = rows.keys.astype(np.float64), rows.values.astype(np.float64)
        wanted = expected(case, rows, keys, values)
        found = run(case, rows)
        assert np.allclose(found, wanted, rtol=1e-4, atol=1e-5), (pasts, np.abs(found - wanted).max())
        assert np.allclose(rows.keys, keys, atol=1e-5) and np.allclose(rows.values, values, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_row_has_its_bits_alone(case: Case) -> None:
    """Guards tiles of every size, chunks of many rows, segments and threads: none may show in a row."""
    pasts = [300, 7, 299, 300, 40, 127, 128, 300, 0, 255, 256, 31, 32]
    rows = some_rows(case, pasts, seed=9)
    both = run(case, rows)
    assert np.array_equal(run(case._replace(threads=3 - case.threads), rows), both)
    for row in range(len(pasts)):
        alone = rows._replace(
            spread=[0],
            past=[rows.past[row]],
            blocks=[rows.blocks[row]],
            z=rows.z[row : row + 1],
            cos=rows.cos[row : row + 1],
            sin=rows.sin[row : row + 1],
        )
        assert np.array_equal(run(case, alone)[0], both[row]), row


@needs_compiler
def test_large_scores_are_no_overflow() -> None:
    """Guards the softmax, whose weights are compared with the greatest of their segment."""
    case = CASES[0]
    rows = some_rows(case, [200, 129], seed=1)
    rows.z[:] *= 100
    keys, values = rows.keys.astype(np.float64), rows.values.astype(np.float64)
    wanted = expected(case, rows, keys, values)
    found = run(case, rows)
    assert np.isfinite(found).all() and np.allclose(found, wanted, rtol=1e-3, atol=1e-2)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a process that has not asked yet, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(tree_attention.VARIABLE, raising=False)
    kept: list[Any] = [tree_attention.kind, tree_attention._library]
    for one in kept:
        one.cache_clear()
    yield tmp_path
    for one in kept:
        one.cache_clear()


def test_an_unknown_attention_is_refused(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a typing error that silently gives another speed."""
    monkeypatch.setenv(tree_attention.VARIABLE, "flash")
    with pytest.raises(UserError, match=r"DYNATREE_ATTENTION: 'flash' is unknown; choose from tree, paged"):
        tree_attention.kind()


@pytest.mark.parametrize("trouble", ["no compiler", "not Linux", "broken", "full"])
def test_without_it_openvino_has_its_own(
    anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """Guards machines where nothing can be compiled or kept: they decode, and say why it is slower."""

    def broken(command: list[str], **_: Any) -> Any:
        raise subprocess.CalledProcessError(1, command, stderr="no such header\nmore")

    if trouble == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    elif trouble == "not Linux":
        monkeypatch.setattr(sys, "platform", "win32")
    else:
        monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/c++")
        monkeypatch.setattr(subprocess, "run", broken)
        if trouble == "full":
            monkeypatch.setattr(tree_attention, "_place", lambda _: anew / "file" / "x.so")
            (anew / "file").write_text("")
    assert tree_attention.kind() == tree_attention.PAGED
    assert ("no such header" in caplog.text) == (trouble == "broken")
    assert not [path for path in anew.rglob("*") if path.suffix in (".so", ".part")]


@needs_compiler
def test_it_is_compiled_once(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the cache: found again as long as source, compiler and processor are the same."""
    path = tree_attention._library()
    assert path is not None and path.is_file() and path.is_relative_to(anew)
    ran: list[list[str]] = []
    real = tree_attention._run
    monkeypatch.setattr(tree_attention, "_run", lambda command: [ran.append(command), real(command)][1])
    tree_attention._library.cache_clear()
    assert tree_attention._library() == path
    assert [command[1:] for command in ran] == [["--version"]]
    other = anew / "other.cpp"
    other.write_text(tree_attention.SOURCE.read_text() + "\n")
    monkeypatch.setattr(tree_attention, "SOURCE", other)
    assert tree_attention._place(ran[0][0]) != path
