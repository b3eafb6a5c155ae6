"""Where commands are called in tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dynatree.data import model_sources

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target, which drafts for itself; modules may have a home of their own."""
    folder = tmp_path_factory.mktemp("home")
    source = {"kind": "random", "architecture": "llama", "configuration": {**SHAPE, "max_position_embeddings": 1024}}
    model_sources.build(model_sources.parse(source), folder / "target", folder, seed=1)
    return folder


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the module's folder `home`, with a cache of its own; torch's threads are put back."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
