"""Memory that each forward reads from end to end, on huge pages.

The processor looks up the address of every page that it reads, and those of a model's weights by 4 KiB are more than it
remembers. Linux has pages of 2 MiB for who asks for them (transparent huge pages).
"""

import ctypes
import mmap
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

_THERE = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS = Path("/proc/self/maps")
# Linux 6.1 and later (madvise(2)): now, not when the system comes to it. Python has no name for it.
_COLLAPSE = 25
# mbind(2), which the C library has no function for, by its number on x86-64; and the mode that binds to no node.
_MBIND, _UNBOUND = 237, 0
# What the processor remembers of 4 KiB pages is some 8 MiB.
_LEAST = 16 * 2**20

Range = tuple[int, int]


class Allocated:
    """Memory that was allocated for a purpose; addresses [begin, end).

    For what holds so many `needed` bytes: of little that is read it matters not on which pages it is.
    """

    def __init__(self, needed: int) -> None:
        self._ranges: list[Range] = []
        self._worth = needed >= _LEAST

    @contextmanager
    def within(self) -> Iterator[None]:
        """What is allocated within, and not given back before the end, is meant."""
        before = _writable() if self._worth else []
        yield
        if self._worth:
            self._ranges += beyond(_writable(), before)

    def gather(self) -> None:
        """Move it to huge pages, as far as it fills such; contents and addresses stay. Once: it is forgotten then.

        It takes 2 to 3 ms a MiB. Nothing is done where the system has none, or has them switched off.
        """
        ranges, self._ranges = self._ranges, []
        size = page_size() if ranges else 0
        if not size:
            return
        library = ctypes.CDLL(None)
        for begin, end in ranges:
            first, length = -(-begin // size) * size, end // size * size + -begin // size * size
            if length > 0:
                where = ctypes.c_void_p(first), ctypes.c_size_t(length)
                # OpenVINO binds each weight to a node, and so makes an area of its own of it: a huge page is of one.
                if platform.machine() == "x86_64":
                    library.syscall(ctypes.c_long(_MBIND), *where, _UNBOUND, None, ctypes.c_ulong(0), 0)
                # Advice alone: what the kernel cannot do it leaves as it is.
                for advice in (mmap.MADV_HUGEPAGE, _COLLAPSE):
                    library.madvise(*where, advice)


def page_size() -> int:
    """Bytes of a huge page; 0: there are none to be had."""
    try:
        switched_off = "[never]" in (_THERE / "enabled").read_text(encoding="ascii")
        return 0 if switched_off else int((_THERE / "hpage_pmd_size").read_text(encoding="ascii"))
    except OSError:
        return 0


def beyond(ranges: list[Range], known: list[Range]) -> list[Range]:
    """What of `ranges` is in none of `known`; both ascending."""
    found, place = [], 0
    for begin, end in ranges:
        # Those that end before it begins end before all later ones.
        while place < len(known) and known[place][1] <= begin:
            place += 1
        for first, last in islice(known, place, None):
            if first >= end:
                break
            if begin < first:
                found.append((begin, first))
            begin = last
        if begin < end:
            found.append((begin, end))
    return found


def _writable() -> list[Range]:
    """Addresses that this process may write to and that are of no file, stacks apart; what touches is one range."""
    if not page_size():
        return []
    found = list[Range]()
    for line in _MAPS.read_text(encoding="utf-8").splitlines():
        addresses, rights, _, _, file, *name = line.split(maxsplit=5)
        if rights.startswith("rw") and file == "0" and (not name or name[0] == "[heap]"):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            if found and found[-1][1] == begin:
                begin, _ = found.pop()
            found.append((begin, end))
    return found
