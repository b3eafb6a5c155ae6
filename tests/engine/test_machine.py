"""What a record says of the machine: enough to refuse a comparison, nothing that tells whose it is."""

import getpass
import json
import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dynatree.costs import calibration
from dynatree.engine import machine
from dynatree.tables import metrics


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Leave torch's threads as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_in_force_are_those_asked_for() -> None:
    """Guards against timing one thread because a workflow tool exported OMP_NUM_THREADS=1."""
    assert machine.set_threads(2) == torch.get_num_threads() == 2
    assert machine.set_threads(None) == torch.get_num_threads() == machine.physical_cores()


def test_physical_cores_are_among_those_allowed() -> None:
    """Guards against more threads than this process may use."""
    assert 1 <= machine.physical_cores() <= (os.cpu_count() or 1)


def test_hyper_threads_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against two threads a core, which slows down matrix products."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda path: "0,2\n" if path.parts[-3] in ("cpu0", "cpu2") else "1,3\n")
    assert machine.physical_cores() == 2


def test_description_has_what_timings_must_share() -> None:
    """Guards against a comparison that cannot be refused, because the record does not say."""
    machine.set_threads(1)
    found = machine.describe_machine("float32", "cpu")
    assert set(metrics.COMPARABLE) <= set(found)
    # A table of forwards is told by the same, whichever Python asks for them.
    assert set(calibration._DECISIVE) == set(metrics.COMPARABLE) - {"python"}
    assert (found["threads"], found["dtype"], found["gpu"]) == (1, "float32", None)
    assert found["torch"] == torch.__version__
    json.dumps(found, allow_nan=False)


def test_description_has_no_name_and_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against publishing where something was measured."""
    host = "a-name-of-a-host"
    monkeypatch.setattr(platform, "node", lambda: host)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(getpass, "getuser", lambda: host)
    text = json.dumps(machine.describe_machine("float32", "cpu"))
    assert host not in text
    assert "/home" not in text
    assert str(Path.cwd()) not in text


def test_a_processor_without_a_name_still_has_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a crash where /proc/cpuinfo is missing or names no model."""
    monkeypatch.setattr(Path, "read_text", lambda _: "processor : 0\n")
    assert machine._processor() == f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"

    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine._processor()
