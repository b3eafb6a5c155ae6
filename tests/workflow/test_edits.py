"""Data sets come and go, and what is measured of others stands, in both tools, from dry runs on the tiny pair."""

import json
from pathlib import Path

import pytest
from dvc.repo import Repo

from tests.workflow.world import World, runs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:_NoneStep")]  # of pygtrie, in DVC's own graph


def another_data_set(world: World) -> None:
    world.edit(sources__more={**world.params["sources"]["tiny_articles"], "documents": 10})
    world.edit(datasets=["tiny_articles", "more"])
    world.run("python", "workflow/scripts/stages.py")


@pytest.fixture
def fresh(finished: World, tmp_path: Path) -> World:
    """A copy of the finished run for one edit."""
    copy = World(tmp_path / "checkout")
    copy.run("cp", "--archive", f"{finished.folder}/.", copy.folder, cwd=finished.folder)
    return copy


def test_a_data_set_that_comes_and_goes_leaves_calibration_alone(fresh: World) -> None:
    """Guards against hours of measuring again because a file of a data set that is gone still lies there."""
    before = (fresh.folder / "params.yaml").read_text()
    another_data_set(fresh)
    fresh.run("snakemake", "--cores", 1, "data/tokens/tiny/more.parquet", "results/perplexity/more.json")
    (fresh.folder / "params.yaml").write_text(before)
    fresh.run("python", "workflow/scripts/stages.py")
    assert not fresh.snakemake("--dry-run")
    # The check of dvc.yaml reads the file of parameters itself.
    assert json.loads(fresh.run("dvc", "status", "--json")).keys() <= {"dvc_yaml"}


@pytest.mark.parametrize("datasets", [["tiny_books"], ["tiny_articles", "tiny_books", "more"]])
def test_one_data_set_or_three_are_planned_alike(fresh: World, datasets: list[str]) -> None:
    """Guards against a graph that was written for two."""
    fresh.edit(sources__more={**fresh.params["sources"]["tiny_articles"], "documents": 10})
    experiments = {name: {**e, "datasets": datasets[:1]} for name, e in fresh.params["experiments"].items()}
    fresh.edit(datasets=datasets, tuning=datasets, experiments=experiments)
    fresh.run("python", "workflow/scripts/stages.py")
    planned = fresh.snakemake("--dry-run", "--forceall")
    assert {name for name in planned if name.startswith("tokenise")} == {f"tokenise:{name}" for name in datasets}
    assert {run.dataset for run in runs(fresh).values() if run.top == "runs"} == set(datasets)
    with Repo(str(fresh.folder)) as repository:
        outs = {str(out.def_path) for stage in repository.index.stages for out in stage.outs}
    assert {f"results/perplexity/{name}.json" for name in datasets} <= outs
