"""A change recomputes what depends on it, nothing else, in both tools, on the tiny pair. Tests build on each other."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dynatree.engine.machine import physical_cores
from dynatree.study import params
from tests.workflow.world import World, runs

pytestmark = pytest.mark.slow

TAU = "methods__dynatree__threshold"
DATASET = "tiny_articles"


def test_after_snakemake_dvc_has_nothing_to_do(world: World):
    """Guards against two tools that measure everything twice."""
    assert world.repro() == {"ran": set(), "restored": set()}


def test_timed_jobs_use_the_configured_threads(world: World):
    """Guards against OMP_NUM_THREADS=1, which Snakemake exports under --cores 1."""
    timings = list((world.folder / "results").rglob("timings.json"))
    assert len(timings) == len(runs(world))
    assert {json.loads(path.read_text())["machine"]["threads"] for path in timings} == {physical_cores()}


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
    known = params.read(world.folder / "params.yaml")
    done = world.repro()
    draws = {name for name in done["ran"] if name.startswith("draw")}
    titles = {title for title, e in known.experiments.items() if "dynatree" in e.methods}
    expected = {f"{title}_dynatree@" for title in ("generate", *titles)} | {"timeline_dynatree", "memory_dynatree"}
    assert {re.sub("(?<=@).*", "", name) for name in done["ran"] - draws} == expected | {"aggregate"}
    assert done["restored"] == set()
    changed = json.loads(world.run("dvc", "metrics", "diff", "--json"))["results/metrics.json"]
    # Speed is measured anew for DynaTree alone; aggregation reads the other runs' records unchanged.
    assert {key.split(".")[0] for key in changed} == {"dynatree"}
    assert f"dynatree.{DATASET}.speedup" in changed


def test_after_dvc_snakemake_has_nothing_to_do(world: World):
    """Guards against Snakemake making again what a stage made."""
    assert not world.snakemake()


def test_reverted_tau_is_restored(world: World):
    """Guards against measuring again what was measured: old results come back from the run cache."""
    before = (world.folder / "results/metrics.json").read_text()
    world.edit(**{TAU: 0.01})
    done = world.repro()
    assert not [name for name in done["ran"] if not name.startswith("draw")]
    assert f"generate_dynatree@{DATASET}" not in done["ran"]
    assert (world.folder / "results/metrics.json").read_text() != before
    assert world.run("git", "status", "--porcelain", "results", "dvc.lock") == ""
    # Restored files have new times; this is the documented line after every checkout.
    world.touch()
    assert not world.snakemake()


def test_partial_tables_name_what_is_missing(world: World):
    """Guards against one failed run that keeps all others' results from being looked at."""
    missing = next(iter(runs(world)))
    lost = world.folder / "results" / missing / "timings.json"
    aside = lost.rename(world.folder / "aside.json")
    said = world.run("snakemake", "--cores", 1, "partial")
    aside.rename(lost)
    assert f"missing: {missing}" in said
    reached = json.loads((world.folder / "results/partial/metrics.json").read_text())
    assert "dynatree" in reached
    assert missing.split("/")[1] not in reached
    assert not world.snakemake()


def test_partial_tables_leave_out_records_of_other_sizes(world: World):
    """Guards against runs of an earlier scale or seed that count as finished, since their files are there."""
    with world.edited(scales__tiny__experiments__default={"prompts": 1, "output_tokens": 15}):
        world.check()
        said = world.run("snakemake", "--cores", 1, "partial")
    missing = {line.removeprefix("missing: ") for line in said.splitlines() if line.startswith("missing: ")}
    assert missing == {folder for folder in runs(world) if folder.startswith(("tree_shape/", "prompt_length/"))}
    assert not world.snakemake()


def test_changed_tau_reruns_dynatree_alone_in_snakemake(world: World):
    """The same as in DVC."""
    world.edit(**{TAU: 0.4})
    ran = world.snakemake()
    changed = {f"generate:{folder}" for folder, run in runs(world).items() if run.method == "dynatree"}
    settings = {run.settings for run in runs(world).values() if run.method == "dynatree"}
    passed = {f"{top}:dynatree/{setting}/{DATASET}" for top in ("timeline", "memory") for setting in settings}
    assert set(ran) - {name for name in ran if name.startswith("draw")} == changed | passed | {"aggregate"}
    world.edit(**{TAU: 0.01})
    ran = world.snakemake()
    assert not [name for name in ran if name.startswith(("generate", "timeline"))]


def test_changed_setting_runs_the_new_point_alone(world: World):
    """Guards against an experiment that starts again when a value is added."""
    listed = "experiments__tree_shape__settings__dynatree_threshold"
    with world.edited(**{listed: ["D2_B2_tau0.01_N16", "D4_B2_tau0.01_N16", "D4_B2_tau0.3_N16"]}):
        planned = world.snakemake("--dry-run")
        world.stages()
        due = world.repro("--dry")["ran"]
    folder = f"tree_shape/dynatree_threshold/D4_B2_tau0.3_N16/{DATASET}"
    assert {name for name in planned if not name.startswith("draw")} == {f"generate:{folder}", "aggregate"}
    assert due == {f"tree_shape_dynatree_threshold@{DATASET}-D4_B2_tau0.3_N16", "aggregate"}


def test_changed_condition_runs_the_new_value_alone(world: World):
    """Guards against every length measured again when one is added."""
    with world.edited(experiments__prompt_length__prompt_tokens=[12, 20]):
        planned, found = world.snakemake("--dry-run"), runs(world)
    wanted = {f"generate:{folder}" for folder, run in found.items() if run.prompt_tokens == 20}
    assert {name for name in planned if not name.startswith(("draw", "choose"))} == wanted | {"aggregate"}
    assert {name for name in planned if name.startswith("choose")} == {f"choose_prompts:P20/{DATASET}"}


def test_changed_batch_size_measures_batches_alone(world: World):
    """Guards against single requests that are calibrated and measured again when a batch size is added."""
    with world.edited(experiments__batch_size__batches=[1, 4]):
        planned, found = world.snakemake("--dry-run"), runs(world).items()
        world.stages()
        due = world.repro("--dry")["ran"]
    # A calibrated method depends on the costs of all batch sizes, the others on their own.
    batched = [f for f, run in found if run.batch == 4 or (run.top, run.method) == ("batch_size", "dynatree")]
    wanted = {f"generate:{folder}" for folder in batched} | {"calibrate_batches:features//float64", "aggregate"}
    assert {name for name in planned if not name.startswith("draw")} == wanted
    larger = {f"batch_size_{run.method}@{DATASET}-4" for _, run in found if run.batch == 4}
    assert due == larger | {"calibrate_batches_features", "aggregate"}


@pytest.mark.parametrize(
    ("key", "value", "rules"),
    [
        ("timeline_tokens", 17, {"timeline"}),
        (
            "calibration__repeats",
            2,
            {"calibrate", "calibrate_batches", "drafter_report", "generate", "timeline", "memory"},
        ),
        ("experiments__default__prompts", 2, {"choose_prompts", "generate"}),
        ("repeats", 2, {"generate"}),
        # Whose prompts leave room for as many.
        ("output_tokens", 23, {"choose_prompts", "generate", "memory", "timeline"}),
    ],
)
def test_changed_sizes_measure_again(world: World, key: str, value: int, rules: set[str]):
    """Guards against sizes that Snakemake does not compare: it drops what is not of Python's own types, silently."""
    with world.edited(**{f"scales__tiny__{key}": value}):
        planned = world.snakemake("--dry-run")
    assert {name.partition(":")[0] for name in planned} - {"aggregate", "draw", "draw_replay"} == rules
    measured = {name.removeprefix("generate:") for name in planned if name.startswith("generate:")}
    main = {folder for folder, run in runs(world).items() if run.top == "runs"}
    if key == "repeats":
        assert measured == main
    if key == "output_tokens":
        assert measured >= main
    if key.startswith("experiments"):
        own = world.params["scales"]["tiny"]["experiments"]
        assert measured >= {folder for folder, run in runs(world).items() if run.top not in ("runs", *own)}


def test_changed_precision_measures_all_again(world: World):
    """Guards against passes that keep their old precision, and are refused beside the new runs after hours."""
    with world.edited(dtype="float32"):
        planned = {name.partition(":")[0] for name in world.snakemake("--dry-run")}
    assert planned >= {"calibrate", "generate", "timeline", "memory", "drafter_report", "perplexity"}


def test_changed_seed_runs_everything_that_draws(world: World):
    """Guards against prompts, models or splits that keep an old seed, and against fetching documents again."""
    every = world.snakemake("--dry-run", "--forceall")
    world.edit(seed=1)
    unseeded = {job for job in every if job == f"download_data:{DATASET}" or job.startswith("library")}
    assert world.snakemake("--dry-run") == every - Counter(unseeded)


def test_an_interrupted_write_leaves_nothing(world: World):
    """Guards against half-written files: no temporary is left anywhere below the results."""
    assert not list(Path(world.folder / "results").rglob("*.part"))
