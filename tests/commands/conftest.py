"""Where commands are called in tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the module's folder `home`, with a cache of its own; torch's threads are put back."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
