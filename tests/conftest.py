"""What all tests share: one thread, one hypothesis profile without a clock or a database, and models built once."""

import gc
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from tests import models

settings.register_profile(
    "dynatree",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("dynatree")
torch.set_num_threads(1)
# What is imported stays: no collection has to look at it again.
gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: where files are dealt out to processes, the short ones fill the gaps at the end.

    One of those on the finished job graph makes it (tests/workflow/conftest.py); the others would wait, so they come
    behind those that need none.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    on_it = [*dict.fromkeys(item.path for item in items if "finished" in getattr(item, "fixturenames", ()))]
    items.sort(key=lambda item: (item.path not in slow, item.path in on_it[1:], item.path not in on_it))


Build = Callable[..., LanguageModel]
Drafts = Callable[..., DraftModel]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Whatever an earlier test set: two processes with two spinning threads each take forty times as long."""
    torch.set_num_threads(1)


@pytest.fixture
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of our own, so that tests neither wait for timed jobs nor disturb them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="session")
def target() -> Build:
    """(architecture, dtype, seed) -> model, built once: decoding leaves nothing behind but a counter of forwards."""
    return lru_cache(maxsize=None)(models.language_model)


@pytest.fixture(scope="session")
def drafter(target: Build) -> Drafts:
    """(kind, architecture, dtype) -> one of `models.DRAFTERS` of that target, built once."""
    return lru_cache(maxsize=None)(
        lambda kind, architecture="llama", dtype=torch.float64: models.DRAFTERS[kind](target(architecture, dtype=dtype))
    )


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without OpenVINO, and as for an architecture that has no graph."""
    monkeypatch.setattr("dynatree.engine.language_model.graph_backend", lambda *_: None)
