"""On what machine, with which versions and threads something was measured. Never a host name or a path."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dynatree.engine.compatibility import GRAPH_FORMATS
from dynatree.engine.graph import kernels


def _processor() -> str:
    # Virtual machines tell little more than the maker, and half the kernels' speed is in the vectors.
    return f"{_model_name()} ({torch.backends.cpu.get_cpu_capability()})"


def _model_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads counted once where the system tells."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for core in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        siblings.add(path.read_text().strip() if path.is_file() else str(core))
    return max(1, len(siblings))


def set_threads(threads: int | None) -> int:
    """Use `threads` (None: physical cores) for torch and say how many are in force.

    Workflow tools export OMP_NUM_THREADS=1 to one-core jobs, which would silently time a single thread.
    """
    torch.set_num_threads(threads or physical_cores())
    return torch.get_num_threads()


def _version(package: str) -> str | None:
    """Of a package that some machines lack."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_machine(dtype: str, device: str) -> dict[str, Any]:
    """What must be equal for two timings to be compared."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": _processor(),
        "cores": physical_cores(),
        "memory_gib": round(memory / 2**30),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "openvino": (openvino := _version("openvino") if device == "cpu" else None),
        "kernels": kernels.kind() if openvino and dtype in GRAPH_FORMATS else None,
    }
