"""Memory on huge pages."""

import ctypes
import platform
from pathlib import Path

import pytest
import torch

from dynatree.engine.graph import huge_pages
from dynatree.engine.graph.huge_pages import Allocated, beyond

MIB = 2**20


@pytest.mark.parametrize(
    ("ranges", "known", "found"),
    [
        ([(0, 9)], [], [(0, 9)]),
        ([(0, 9)], [(0, 9)], []),
        ([(0, 9)], [(2, 3), (5, 6)], [(0, 2), (3, 5), (6, 9)]),
        ([(4, 9), (12, 14)], [(0, 5), (8, 13)], [(5, 8), (13, 14)]),
        ([(4, 9)], [(0, 4), (9, 12)], [(4, 9)]),
    ],
)
def test_what_is_new(ranges: list[tuple[int, int]], known: list[tuple[int, int]], found: list[tuple[int, int]]) -> None:
    """Guards memory of others that is moved, at milliseconds a MiB."""
    assert beyond(ranges, known) == found


def huge(tensor: torch.Tensor) -> int:
    """Bytes on huge pages of the mapping that holds `tensor`."""
    within = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            within = begin <= tensor.data_ptr() + tensor.nbytes // 2 < end
        elif within and head == "AnonHugePages:":
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.skipif(not huge_pages.page_size(), reason="no huge pages to be had here")
def test_what_is_allocated_within_is_gathered() -> None:
    """Guards weights that stay on small pages, and other memory that is touched."""
    before, memory = torch.full((32 * MIB,), 7, dtype=torch.uint8), Allocated(32 * MIB)
    with memory.within():
        made = torch.arange(8 * MIB, dtype=torch.int32)
        address = made.data_ptr()
    # Of memory that another test has left it may have some.
    had = huge(before)
    memory.gather()
    assert made.data_ptr() == address and torch.equal(made, torch.arange(8 * MIB, dtype=torch.int32))
    with (little := Allocated(MIB)).within():
        other = torch.full((32 * MIB,), 7, dtype=torch.uint8)
    had_other = huge(other)
    little.gather()
    assert huge(other) == had_other
    if not huge(made):
        pytest.skip("this kernel gathers in its own time")
    assert huge(made) >= 24 * MIB and huge(before) == had


@pytest.mark.skipif(not huge_pages.page_size(), reason="no huge pages to be had here")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call is of x86-64")
def test_what_was_bound_in_pieces_is_gathered() -> None:
    """Guards weights that OpenVINO has bound to a node, each an area of its own below the size of a huge page."""
    memory, bind, piece = Allocated(32 * MIB), 2, MIB // 2
    with (plain := Allocated(32 * MIB)).within():
        unbound = torch.full((32 * MIB,), 7, dtype=torch.uint8)
    plain.gather()
    if not huge(unbound):
        pytest.skip("this kernel gathers in its own time")
    with memory.within():
        made = torch.arange(8 * MIB, dtype=torch.int32)
        # Every other half of a MiB.
        begin, first = -(-made.data_ptr() // MIB) * MIB, ctypes.c_ulong(1)
        for at in range(begin, begin + made.nbytes - 2 * MIB, MIB):
            where = ctypes.c_void_p(at), ctypes.c_size_t(piece)
            call = ctypes.c_long(huge_pages._MBIND), *where, bind, ctypes.byref(first), ctypes.c_ulong(64), 0
            if ctypes.CDLL(None).syscall(*call):
                pytest.skip("this system binds no memory")
    assert huge(made) < 24 * MIB
    memory.gather()
    assert torch.equal(made, torch.arange(8 * MIB, dtype=torch.int32))
    assert huge(made) >= 24 * MIB


def test_where_there_are_none_nothing_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards systems without them, and those on which they are switched off."""
    for name, content in (("enabled", "always madvise [never]"), ("hpage_pmd_size", "2097152")):
        (tmp_path / name).write_text(content)
    for there in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(huge_pages, "_THERE", there)
        monkeypatch.setattr(huge_pages, "_MAPS", tmp_path / "none")
        memory = Allocated(32 * MIB)
        with memory.within():
            pass
        memory.gather()
    (tmp_path / "enabled").write_text("always [madvise] never")
    monkeypatch.setattr(huge_pages, "_THERE", tmp_path)
    assert huge_pages.page_size() == 2097152
