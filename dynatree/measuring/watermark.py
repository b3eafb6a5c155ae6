"""The most memory that this process had in use: resident memory on a CPU, torch's allocator on CUDA."""

import gc
import os
import re
from pathlib import Path

import torch

from dynatree.errors import UserError

PROCESS = Path("/proc/self")


class HighWater:
    """The most memory in use since the process's start or the last reset, and what is in use, both in bytes.

    On CUDA that of torch's allocator; on a CPU resident memory, which Linux alone tells (VmHWM and VmRSS in proc(5)).
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"

    @property
    def told(self) -> bool:
        """Whether this system tells a process's peak."""
        return self._cuda or os.access(PROCESS / "clear_refs", os.W_OK)

    def peak(self) -> int:
        """The high-water mark."""
        return torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM")

    def held(self) -> int:
        """In use now."""
        return torch.cuda.memory_allocated() if self._cuda else _resident("VmRSS")

    def reset(self) -> None:
        """Let the mark begin again at what is in use. Raises UserError where the system cannot do that."""
        gc.collect()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            (PROCESS / "clear_refs").write_text("5")
        except OSError as error:
            raise UserError(_no_mark(error)) from error


def _resident(name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", (PROCESS / "status").read_text(), re.MULTILINE)
    except OSError as error:
        raise UserError(_no_mark(error)) from error
    if found is None:
        raise UserError(_no_mark(f"no {name} in {PROCESS / 'status'}"))
    return 1024 * int(found[1])


def _no_mark(reason: object) -> str:
    return f"memory: this system does not tell a process's peak ({reason}); measure on Linux or with --device cuda"
