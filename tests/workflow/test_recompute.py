"""A change recomputes what depends on it, nothing else, in both tools, on the tiny pair. Tests build on each other."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dynatree import provenance
from tests.workflow.world import World

pytestmark = pytest.mark.slow

TAU = "methods__dynatree__threshold"
DATASET = "tiny_articles"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A finished run by Snakemake, handed over to DVC."""
    made = World(tmp_path_factory.mktemp("world with space"))
    made.make()
    ran = made.snakemake()
    assert sum(rule.startswith("generate:") for rule in ran) == 16
    made.run("dvc", "commit", "--force", "--quiet")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "first run")
    return made


def test_after_snakemake_dvc_has_nothing_to_do(world: World):
    """Guards against two tools that measure everything twice."""
    assert world.repro() == {"ran": set(), "restored": set()}


def test_timed_jobs_use_the_configured_threads(world: World):
    """Guards against OMP_NUM_THREADS=1, which Snakemake exports under --cores 1."""
    timings = list((world.folder / "results").rglob("timings.json"))
    assert len(timings) == 16
    assert {json.loads(path.read_text())["machine"]["threads"] for path in timings} == {provenance.physical_cores()}


def test_target_forwards_are_rounds(world: World):
    """Guards against a second target forward in a round, for every method of ours."""
    for method in ("autoregressive", "linear", "fixed_tree", "dynatree_threshold", "dynatree"):
        for path in (world.folder / "results/runs" / method).rglob("outputs.jsonl"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                assert record["target_forwards"] == len(record["rounds"])


def test_changed_tau_reruns_dynatree_alone_in_dvc(world: World):
    """Guards against a change of one knob that measures other methods again; metrics diff shows it."""
    world.edit(**{TAU: 0.2})
    done = world.repro()
    draws = {name for name in done["ran"] if name.startswith("draw")}
    assert done["ran"] - draws == {
        f"generate_cost_aware@run0-{DATASET}",
        "penalised_cost_aware@run0",
        "timeline_cost_aware@run0",
        "aggregate",
    }
    assert done["restored"] == set()
    changed = json.loads(world.run("dvc", "metrics", "diff", "--json"))["results/metrics.json"]
    # Speed is measured anew for DynaTree alone; aggregation reads the other runs' records unchanged.
    assert {key.split(".")[0] for key in changed} == {"dynatree"}
    assert "dynatree.throughput" in changed


def test_after_dvc_snakemake_has_nothing_to_do(world: World):
    """Guards against Snakemake making again what a stage made."""
    assert not world.snakemake()


def test_reverted_tau_is_restored(world: World):
    """Guards against measuring again what was measured: old results come back from the run cache."""
    before = (world.folder / "results/metrics.json").read_text()
    world.edit(**{TAU: 0.01})
    done = world.repro()
    assert not [name for name in done["ran"] if not name.startswith("draw")]
    assert f"generate_cost_aware@run0-{DATASET}" not in done["ran"]
    assert (world.folder / "results/metrics.json").read_text() != before
    assert world.run("git", "status", "--porcelain", "results", "dvc.lock") == ""
    # Restored files have new times; this is the documented line after every checkout.
    world.touch()
    assert not world.snakemake()


def test_changed_tau_reruns_dynatree_alone_in_snakemake(world: World):
    """The same as in DVC."""
    world.edit(**{TAU: 0.4})
    ran = world.snakemake()
    folder = f"dynatree/D63_B3_tau0.4_N63/{DATASET}"
    assert set(ran) - {name for name in ran if name.startswith("draw:")} == {
        f"generate:runs/{folder}",
        f"generate:penalised/{folder}",
        f"timeline:{folder}",
        "aggregate",
    }
    world.edit(**{TAU: 0.01})
    ran = world.snakemake()
    assert not [name for name in ran if name.startswith(("generate", "timeline"))]


def test_changed_sweep_value_runs_the_new_point_alone(world: World):
    """Guards against a sweep that starts again when a value is added."""
    world.edit(sweep__settings=["D4_B2_tau0.01_N16", "D4_B2_tau0.3_N16"])
    ran = world.snakemake()
    folder = f"sweep/dynatree_threshold/D4_B2_tau0.3_N16/{DATASET}"
    assert {name for name in ran if not name.startswith("draw:")} == {
        f"generate:{folder}",
        "aggregate",
    }
    assert not {p.name for p in (world.folder / "results/sweep/dynatree_threshold").iterdir()} - {
        "D4_B2_tau0.01_N16",
        "D4_B2_tau0.1_N16",
        "D4_B2_tau0.3_N16",
    }


def test_a_stopped_benchmark_goes_on(world: World):
    """Guards against measuring again what a killed benchmark had measured, and against a benchmark in `all`."""
    benchmark = (
        "snakemake",
        "--cores",
        1,
        "--snakefile",
        "workflow/rules/benchmark.smk",
        "--",
        "figures/benchmark.svg",
    )
    world.run(*benchmark)
    records = sorted((world.folder / "results/benchmark").glob("*/*/*.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    lost = next(path for path in records if path.parent.name == "penalised")
    for path in (lost, world.folder / "results/benchmark.parquet", world.folder / "figures/benchmark.svg"):
        path.unlink()
    world.run(*benchmark)
    assert [path for path in records if path.stat().st_mtime_ns != before[path]] == [lost]
    assert not world.snakemake("--dry-run")


def test_changed_seed_runs_everything_that_draws(world: World):
    """Guards against prompts, models or splits that keep an old seed, and against fetching documents again."""
    every = world.snakemake("--dry-run", "--forceall")
    world.edit(seed=1)
    assert world.snakemake("--dry-run") == every - Counter([f"download_data:{DATASET}"])


def test_an_interrupted_write_leaves_nothing(world: World):
    """Guards against half-written files: no temporary is left anywhere below the results."""
    assert not list(Path(world.folder / "results").rglob("*.part"))
