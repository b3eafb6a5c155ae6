"""Snakemake and DVC as processes that need not import them: each is forked from one that has."""

import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Where a command's `main` is. Nothing of the library is imported before the fork: it is that of the command's folder.
PROGRAMS = {"snakemake": "snakemake.cli", "dvc": "dvc.cli"}


def run(command: Sequence[str], folder: Path, environment: dict[str, str], said: Path) -> int:
    """The exit status of a command of PROGRAMS; its output and errors are written to `said`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PROGRAMS.values(), "dvc.repo"])
    process = context.Process(target=_main, args=(command, folder, environment, said))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _main(command: Sequence[str], folder: Path, environment: dict[str, str], said: Path) -> None:
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    tempfile.tempdir = None  # of the environment now
    sys.argv = [*command]
    sys.exit(importlib.import_module(PROGRAMS[command[0]]).main())
