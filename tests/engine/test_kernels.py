"""Our own operations, by themselves: against plain formulas in float64, and where they cannot be had."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import PartialShape, Type
from openvino import opset13 as op

from dynatree.engine.graph import codes, kernels
from dynatree.engine.graph.block_cache import BLOCK, addresses
from dynatree.engine.graph.kernels import packing
from dynatree.errors import UserError
from tests.compiler import needs_compiler

BLOCKS, EPS = 160, 1e-5


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
    given += [np.array(rows.spread, np.int32), np.array(rows.past, np.int32)]
    given += [np.concatenate(rows.blocks).astype(np.int32), begins]
    given.append(addresses([None, None, rows.keys, rows.values]))
    types = {np.dtype(np.float32): Type.f32, np.dtype(np.int32): Type.i32}
    inputs = [op.parameter(PartialShape([-1] * part.ndim), types[part.dtype]) for part in given]
    inputs[0] = op.parameter(PartialShape([-1, rows.z.shape[1]]), Type.f32)
    made = kernels.attention([*inputs, *map(op.constant, rows.norms)], 1, case.heads, case.groups, case.size, EPS)
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
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_row_has_its_bits_alone(case: Case, few: bool) -> None:
    """Guards tiles of every size, chunks of many rows, segments and threads: none may show in a row."""
    pasts = [300, 7, 299, 300, 40, 127, 128, 300, 0, 255, 256, 31, 32] * (1 if few else 9)
    rows = some_rows(case, pasts, seed=9)
    both = run(case, rows)
    assert np.array_equal(run(case._replace(threads=3 - case.threads), rows), both)
    for row in range(0, len(pasts), 1 if few else 17):
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


needs_bytes = pytest.mark.skipif(not kernels.multiplies_bytes(), reason="no AVX-512 VNNI")


def packed(weight: torch.Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a weight [o, i], and the weight that they stand for, in float64."""
    if bits == 8:
        values, scale = codes.eight_bits(weight)
        return packing.packed_eight(values, scale).flatten().numpy(), (values.double() * scale).numpy()
    found = codes.four_bits(weight)
    least = (found.rest - (found.scale * found.zeros).squeeze(-1)).half().double()
    stands = found.codes.double() * found.scale.half() + least.unsqueeze(-1)
    return packing.packed_four(found).flatten().numpy(), stands.flatten(1).numpy()


def times(
    x: np.ndarray,
    weights: np.ndarray,
    outputs: int,
    bits: int,
    threads: int = 1,
    norm: np.ndarray | None = None,
    own: int = 0,
) -> np.ndarray:
    """What a graph of the operation alone gives, by OpenVINO's `threads` or by `own` ones."""
    given = op.parameter(PartialShape([-1, x.shape[1]]), Type.f32)
    held = packing.Memory().hold(torch.from_numpy(weights))
    norms = [] if norm is None else [op.constant(norm)]
    made = kernels.product([given, op.constant(ov.Tensor(held, shared_memory=True)), *norms], outputs, bits, EPS, own)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(ov.Model([made], [given]), "CPU", settings).create_infer_request()
    request.infer([x])
    found: np.ndarray = request.get_output_tensor(0).data.copy()
    return found


@needs_bytes
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (16, 64), (97, 96), (130, 576), (576, 1536)])
def test_it_is_a_product(outputs: int, inputs: int, bits: int) -> None:
    """Guards the order of packed weights, tiles that are not full, and activations that become integers."""
    chance = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs, generator=chance) + 0.3
    bytes, stands = packed(weight, bits)
    for count in (1, 2, 7, 8, 9, 23):
        x = torch.randn(count, inputs, generator=chance)
        x[0, :32] = 0
        groups = x.double().view(count, -1, 32)
        step = groups.abs().amax(-1, keepdim=True) / 127
        rounded = (groups / step.clamp(min=1e-30)).round() * step
        found = times(x.numpy(), bytes, outputs, bits)
        wanted = rounded.view(count, -1).numpy() @ stands.T
        # A value half-way between two integers may go either way.
        either = 1.01 * float(step.max()) * np.abs(stands).max()
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max() + either
        assert np.median(np.abs(found - wanted)) <= 1e-5 * np.abs(wanted).max()
        exact = x.double().numpy() @ weight.double().numpy().T
        assert np.square(found - exact).mean() <= (2e-3 if bits == 8 else 2e-2) * np.square(exact).mean()


@needs_bytes
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_of_a_row_has_its_bits_alone(bits: int) -> None:
    """Guards tiles of rows and threads: neither may show in a row."""
    chance = torch.Generator().manual_seed(3)
    bytes, _ = packed(torch.randn(130, 576, generator=chance), bits)
    x = torch.randn(23, 576, generator=chance).numpy()
    together = times(x, bytes, 130, bits)
    for threads in (2, 3):
        assert np.array_equal(times(x, bytes, 130, bits, threads=threads), together)
        assert np.array_equal(times(x, bytes, 130, bits, own=threads), together)
    for count in range(1, 10):
        assert np.array_equal(times(x[23 - count :], bytes, 130, bits), together[23 - count :]), count


@needs_bytes
def test_threads_of_our_own_are_for_one_call_at_a_time() -> None:
    """Guards decoding in several threads at once: who comes second works alone."""
    bytes, _ = packed(torch.randn(130, 576, generator=torch.Generator().manual_seed(3)), 8)
    x = torch.randn(23, 576, generator=torch.Generator().manual_seed(4)).numpy()
    wanted = times(x, bytes, 130, 8)

    def same(_: int) -> bool:
        return all(np.array_equal(times(x, bytes, 130, 8, own=4), wanted) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(4)))
    # They sleep by now, and are woken.
    time.sleep(0.05)
    assert same(0)


@needs_bytes
def test_rows_are_normed_before_a_product() -> None:
    """Guards the norm before the output layer."""
    chance = torch.Generator().manual_seed(4)
    bytes, _ = packed(torch.randn(33, 96, generator=chance), 8)
    x, norm = (torch.randn(*size, generator=chance) for size in ((11, 96), (96,)))
    normed = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * norm
    found, wanted = times(x.numpy(), bytes, 33, 8, norm=norm.numpy()), times(normed.numpy(), bytes, 33, 8)
    assert np.abs(found - wanted).mean() <= 1e-3 * np.abs(wanted).mean()
    assert np.array_equal(times(x[4:5].numpy(), bytes, 33, 8, threads=2, norm=norm.numpy())[0], found[4])


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a process that has not asked yet, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    kept: list[Any] = [kernels._kind, kernels.library]
    for one in kept:
        one.cache_clear()
    yield tmp_path
    for one in kept:
        one.cache_clear()


def test_unknown_kernels_are_refused(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a typing error that silently gives another speed."""
    monkeypatch.setenv(kernels.VARIABLE, "flash")
    with pytest.raises(UserError, match=r"DYNATREE_KERNELS: 'flash' is unknown; choose from own, openvino"):
        kernels.kind()


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
            monkeypatch.setattr(kernels, "_place", lambda _: anew / "file" / "x.so")
            (anew / "file").write_text("")
    assert kernels.kind() == kernels.OPENVINO
    assert ("no such header" in caplog.text) == (trouble == "broken")
    assert ("no C++ compiler is found" in caplog.text) == (trouble == "no compiler")
    assert not [path for path in anew.rglob("*") if path.suffix in (".so", ".part")]


@needs_compiler
@pytest.mark.parametrize("kept", [b"", b"no library"])
def test_what_cannot_be_loaded_is_compiled_again(anew: Path, kept: bytes) -> None:
    """Guards against a file of a crash, or of another system, that nobody would know to remove."""
    compiler = kernels._compiler()
    assert compiler is not None
    path = kernels._place(compiler)
    path.parent.mkdir(parents=True)
    path.write_bytes(kept)
    assert kernels.kind() == kernels.OWN and path.stat().st_size > 1000
    assert [*path.parent.iterdir()] == [path]


def test_a_compiler_may_have_options(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Guards those who compile by another, or through a cache."""
    monkeypatch.setenv("CXX", f"{sys.executable} -m some")
    assert kernels._compiler() == [sys.executable, "-m", "some"]
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    assert kernels._compiler() is None and "CXX is no-such-compiler" in caplog.text


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("level", ["x86-64-v3", "x86-64-v2"])
def test_other_processors(anew: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """Guards what is compiled where there is no AVX-512, and no AVX2: in a process of its own, as a library stays."""
    ran = "import sys; from dynatree.engine.graph import kernels; from tests.engine import test_kernels as t\n"
    ran += f"kernels._OPTIONS = tuple(one if one[:6] != '-march' else '-march={level}' for one in kernels._OPTIONS)\n"
    ran += "assert kernels.kind() == kernels.OWN\n"
    ran += "[(t.test_it_is_attention(case), t.test_a_row_has_its_bits_alone(case, True)) for case in t.CASES]"
    done = subprocess.run([sys.executable, "-c", ran], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]


@needs_compiler
def test_it_is_compiled_once(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the cache: found again as long as source, compiler and processor are the same."""
    path = kernels.library()
    assert path is not None and path.is_file() and path.is_relative_to(anew)
    ran: list[list[str]] = []
    real = kernels._run
    monkeypatch.setattr(kernels, "_run", lambda command: [ran.append(command), real(command)][1])
    kernels.library.cache_clear()
    assert kernels.library() == path
    assert [command[1:] for command in ran] == [["--version"]]
    other = shutil.copytree(kernels.SOURCES, anew / "other")
    (other / "common.hpp").write_text("// another\n")
    monkeypatch.setattr(kernels, "SOURCES", other)
    assert kernels._place([ran[0][0]]) != path
