"""A finished run of the tiny job graph, made once; each module of tests changes a copy of its own."""

import fcntl
import os
from collections.abc import Iterator

import pytest

from tests.workflow.world import World, runs


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run by Snakemake, handed over to DVC. Whichever of pytest's processes comes first makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made, done = World(shared / "finished"), shared / "finished.done"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            made.make()
            ran = made.snakemake()
            assert sum(rule.startswith("generate:") for rule in ran) == len(runs(made))
            made.run("dvc", "commit", "--force", "--quiet")
            made.run("git", "add", "-A")
            made.run("git", "commit", "-qm", "first run")
            done.touch()
    return made


@pytest.fixture(scope="module")
def world(finished: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A copy of the finished run, in a folder whose name needs quotes; no half-written file is left in it."""
    copy = World(tmp_path_factory.mktemp("world with space") / "checkout")
    copy.run("cp", "--archive", f"{finished.folder}/.", copy.folder)
    yield copy
    assert not list((copy.folder / "results").rglob("*.part"))
