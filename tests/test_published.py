"""What is published: all that dvc.lock names is there, and tables and numbers come out of the raw records again."""

import hashlib
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from dynatree import files
from dynatree.study import params
from dynatree.tables import comparison, metrics
from dynatree.tables.columns import RUN_KEY
from tests.workflow.world import ROOT

PUBLISHED = sorted(path for path in (ROOT / "published").iterdir() if path.is_dir())
SCRIPT = runpy.run_path(str(ROOT / "workflow/scripts/publish.py"))
named, LEFT_OUT = SCRIPT["named"], SCRIPT["LEFT_OUT"]
RUN = [field.name for field in RUN_KEY]
scales = pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return found


@pytest.fixture(scope="module", params=PUBLISHED, ids=lambda folder: folder.name)
def remade(request: pytest.FixtureRequest) -> tuple[Path, list[dict[str, Any]]]:
    """A published folder of results, and the rows of the table `runs`, made of its raw records again."""
    results = request.param / "results"
    folders = [path.parent for path in sorted(results.rglob(files.OUTPUTS))]
    return results, metrics.runs([metrics.Records.read(results, folder) for folder in folders])


@scales
def test_all_that_the_lock_names_is_there(folder: Path) -> None:
    """Guards against numbers whose raw records nobody can have."""
    # Of the version that it was run with, whose keys may not be today's.
    assert params.load(folder / "params.yaml")["scale"] == folder.name
    expected = {path: md5 for path, md5 in named(folder / "dvc.lock").items() if path.suffix != LEFT_OUT}
    assert {path.parts[0] for path in expected} == {"results", "figures"}
    found = {path: hashlib.md5((folder / path).read_bytes()).hexdigest() for path in expected}
    assert found == expected


def test_the_lock_of_this_checkout_is_published() -> None:
    """Guards against a new dvc.lock without its records: `make publish` belongs to it."""
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "dvc.lock"], cwd=ROOT, check=False).returncode:
        pytest.skip("dvc.lock is not as it was committed: measured here, or no git")
    scale = params.read(ROOT / "params.yaml").scale
    assert (ROOT / "published" / scale / "dvc.lock").read_bytes() == (ROOT / "dvc.lock").read_bytes()


def test_the_table_of_runs_comes_from_the_records(remade: tuple[Path, list[dict[str, Any]]]) -> None:
    """Guards against tables of other records than those beside them."""
    results, made = remade

    def ordered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(found, key=lambda row: [row.get(name, "") for name in (*RUN, "prompt_tokens", "batch", "dtype")])

    # Columns of today's that it lacks it was published before.
    stated = rows(results / "runs.parquet")
    assert ordered(stated) == ordered([{name: row[name] for name in stated[0]} for row in made])


def test_the_headline_comes_from_the_records(remade: tuple[Path, list[dict[str, Any]]]) -> None:
    """Guards against numbers in metrics.json that no record has."""
    results, made = remade
    headline = files.read_json(results / "metrics.json")
    perplexity = [files.read_json(path) for path in sorted((results / "perplexity").iterdir())]
    assert metrics.headline(made, perplexity, headline["machine"]) == headline


@scales
def test_the_benchmark_s_table_comes_from_its_records(folder: Path) -> None:
    """The same for the speeds of the benchmark, where it was run."""
    if not (folder / "results/benchmark.parquet").is_file():
        pytest.skip("no benchmark at this scale")
    table = rows(folder / "results/benchmark.parquet")
    for text in {row["text"] for row in table}:
        records = sorted((folder / "results/benchmark").glob(f"*/{text}-*/*.json"))
        again = sorted((folder / "results/benchmark").glob(f"*/{text}-*/again/*/*.json"))
        made = comparison.summary(
            text,
            [row for path in records for row in files.read_json(path)],
            {path.parent.name: files.read_json(path) for path in again},
        )
        for name in ("value", "low", "high", "worst", "worst_again"):
            stated = {key(row): row[name] for row in table if row["text"] == text}
            assert {key(row): row[name] for row in made} == pytest.approx(stated), name


def key(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """What a row of the benchmark's table is about."""
    return row["method"], row["dataset"], row["baseline"], row["part"]
