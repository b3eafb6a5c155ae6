"""A change recomputes what depends on it, nothing else, in both tools, on the tiny pair. Tests build on each other."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dynatree.engine.machine import physical_cores
from dynatree.study import grid, params
from tests.workflow.world import World, jobs

pytestmark = pytest.mark.slow

TAU = "methods__dynatree__threshold"
DATASET = "tiny_articles"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A finished run by Snakemake, handed over to DVC."""
    made = World(tmp_path_factory.mktemp("world with space"))
    made.make()
    ran = made.snakemake()
    assert sum(rule.startswith("generate:") for rule in ran) == len(runs(made))
    made.run("dvc", "commit", "--force", "--quiet")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "first run")
    return made


def runs(world: World) -> dict[str, grid.Run]:
    """The generation runs of this world, by folder."""
    return grid.expand(params.read(world.folder / "params.yaml"))


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
    assert {key.split(".")[0] for key in changed} == {"dynatree", "autoregressive_step"}
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


def test_changed_tau_reruns_dynatree_alone_in_snakemake(world: World):
    """The same as in DVC."""
    world.edit(**{TAU: 0.4})
    ran = world.snakemake()
    changed = {f"generate:{folder}" for folder, run in runs(world).items() if run.method == "dynatree"}
    settings = {run.settings for run in runs(world).values() if run.method == "dynatree"}
    passed = {f"{top}:dynatree/{setting}/{DATASET}" for top in ("timeline", "memory") for setting in settings}
    assert set(ran) - {name for name in ran if name.startswith("draw:")} == changed | passed | {"aggregate"}
    world.edit(**{TAU: 0.01})
    ran = world.snakemake()
    assert not [name for name in ran if name.startswith(("generate", "timeline"))]


def test_changed_setting_runs_the_new_point_alone(world: World):
    """Guards against an experiment that starts again when a value is added."""
    listed = "experiments__tree_shape__settings__dynatree_threshold"
    world.edit(**{listed: ["D2_B2_tau0.01_N16", "D4_B2_tau0.01_N16", "D4_B2_tau0.3_N16"]})
    ran = world.snakemake()
    folder = f"tree_shape/dynatree_threshold/D4_B2_tau0.3_N16/{DATASET}"
    assert {name for name in ran if not name.startswith("draw:")} == {f"generate:{folder}", "aggregate"}
    done = world.repro()
    assert not [name for name in done["ran"] if name.startswith(("generate", "ablation", "timeline", "memory"))]


@pytest.mark.parametrize(("condition", "values"), [("prompt_length__prompt_tokens", [12, 20])])
def test_changed_condition_runs_the_new_value_alone(world: World, condition: str, values: list[int]):
    """Guards against every length measured again when one is added."""
    world.edit(**{f"experiments__{condition}": values})
    ran = world.snakemake()
    wanted = {f"generate:{folder}" for folder, run in runs(world).items() if run.prompt_tokens == 20}
    assert {name for name in ran if not name.startswith(("draw:", "choose"))} == wanted | {"aggregate"}
    assert {name for name in ran if name.startswith("choose")} == {f"choose_prompts:P20/{DATASET}"}


def test_changed_batch_size_measures_batches_alone(world: World):
    """Guards against single requests that are calibrated and measured again when a batch size is added."""
    world.edit(experiments__batch_size__batches=[1, 4])
    ran = world.snakemake()
    # A calibrated method depends on the costs of all batch sizes, the others on their own.
    found = runs(world).items()
    batched = [f for f, run in found if run.batch == 4 or (run.top, run.method) == ("batch_size", "dynatree")]
    wanted = {f"generate:{folder}" for folder in batched} | {"calibrate_batches", "aggregate"}
    assert {name for name in ran if not name.startswith("draw:")} == wanted
    world.run("dvc", "commit", "--force", "--quiet")
    world.edit(experiments__batch_size__batches=[1, 4, 8])
    done = {name.partition("@")[0] for name in world.repro()["ran"]}
    batched = {"calibrate_batches", "batch_size_dynatree", "batch_size_autoregressive", "aggregate"}
    assert {name for name in done if not name.startswith("draw")} == batched


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
    before = (world.folder / "params.yaml").read_text()
    world.edit(**{f"scales__tiny__{key}": value})
    planned = world.snakemake("--dry-run")
    (world.folder / "params.yaml").write_text(before)
    assert {name.partition(":")[0] for name in planned} - {"aggregate", "draw"} == rules
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
    before = (world.folder / "params.yaml").read_text()
    world.edit(dtype="float64")
    planned = {name.partition(":")[0] for name in world.snakemake("--dry-run")}
    (world.folder / "params.yaml").write_text(before)
    assert planned >= {"calibrate", "generate", "timeline", "memory", "drafter_report", "perplexity"}


def test_a_stopped_benchmark_goes_on(world: World):
    """Guards against measuring again what a killed benchmark had measured, or one of fewer kinds of text; against
    keeping what other code had measured, and against a benchmark in `all`."""
    few = {"methods": ["autoregressive", "transformers", "linear", "dynatree"], "also": {}}
    world.edit(benchmark={**world.params["benchmark"], **few, "grids": {"linear": {"draft_tokens": [1, 2, 3]}}})
    benchmark = ("snakemake", "--cores", 1, "figures/benchmark.svg")

    def records() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (world.folder / "results/benchmark").glob("*/*/*.json")}

    world.run(*benchmark)
    before = records()
    kinds = {path.parent.name.partition("-")[0] for path in before}
    assert kinds == {"greedy", "penalised", "tuned_greedy", "tuned_penalised", "calibration"}
    lost = next(path for path in before if path.parent.name.startswith("penalised"))
    for path in (lost, world.folder / "results/benchmark.parquet", world.folder / "figures/benchmark.svg"):
        path.unlink()
    world.run(*benchmark)
    assert [path for path, at in records().items() if at != before[path]] == [lost]
    texts = world.params["benchmark"]["texts"]
    world.edit(benchmark__texts={**texts, "fresh": {"no_repeat_ngram_size": 3}})
    world.run(*benchmark)
    after = records()
    assert {path.parent.name.partition("-")[0] for path in set(after) - set(before)} == {"fresh", "tuned_fresh"}
    assert [path for path in before if after[path] != before[path]] == [lost]
    world.edit(benchmark__texts=texts)
    assert not world.snakemake("--dry-run")
    policy = world.folder / "dynatree/policies/cost_aware.py"
    written = policy.read_text()
    policy.write_text(written + "# decodes in another way\n")
    world.run(*benchmark)
    assert len(records()) == len(after) + len(before)
    policy.write_text(written)
    world.run("snakemake", "--cores", 1, "--until", "library", "--", "all")  # as it was, for the next test


FIGURE = """
import altair as alt

from dynatree.figures.shared import queries, theme

TABLES = ("runs",)
SECTION = "Speed"


def draw(tables):
    rows = queries.data(queries.rows(tables, "runs"))
    return theme.finish(alt.Chart(rows).mark_point().encode(x="method:N", y="seconds:Q"))


def caption(tables):
    return f"{len(queries.rows(tables, 'runs'))} runs."
"""

POLICY = """
from dynatree.policies import PolicySettings


class Policy(PolicySettings):
    depth: int = 2

    @property
    def branch(self):
        return 1
"""


class Added:
    """One file in the library of a finished world, used as where that checkout is installed; taken back at the end."""

    def __init__(self, world: World, path: str, text: str):
        self.world, self.file, self.text = world, world.folder / path, text
        self.before = (world.folder / "params.yaml").read_text()

    def __enter__(self) -> "Added":
        self.world.snakemake()  # what an earlier test left to be made
        self.file.write_text(self.text)
        return self

    def run(self, *command: Any) -> str:
        return self.world.run("env", f"PYTHONPATH={self.world.folder}", *command)

    def __exit__(self, *_: object) -> None:
        self.file.unlink()
        (self.world.folder / "params.yaml").write_text(self.before)
        self.world.run("python", "workflow/scripts/stages.py")


def test_a_figure_is_one_file_and_one_line(world: World):
    """Guards the promise of CONTRIBUTING: nothing else is edited, and nothing else is made again."""
    with Added(world, "dynatree/figures/extra.py", FIGURE) as added:
        world.edit(figures=[*world.params["figures"], "extra"])
        ran = jobs(added.run("snakemake", "--cores", 1, "all"))
        assert set(ran) == {"draw:extra", "library:draw-figures.extra"}
        assert (world.folder / "figures/extra.caption.txt").read_text().strip().endswith(" runs.")
        added.run("python", "workflow/scripts/stages.py")
        assert "draw_extra" in world.run("dvc", "stage", "list", "--name-only")


def test_a_policy_is_one_file_and_one_line(world: World):
    """The same for a policy: what other methods measured stands."""
    with Added(world, "dynatree/policies/extra.py", POLICY) as added:
        world.edit(methods__extra={"decoder": "speculative", "policy": "extra", "drafting": "model"})
        ran = set(jobs(added.run("snakemake", "--cores", 1, "all")))
        own = {name for name in ran if name.startswith("generate:")}
        assert own and {name.split("/")[1] for name in own} == {"extra"}
        others = {name.partition(":")[0] for name in ran - own}
        assert others <= {"library", "aggregate", "draw"}
        assert "extra" in json.loads((world.folder / "results/metrics.json").read_text())


def test_a_data_set_is_one_entry_and_its_name(world: World):
    """The same for text: it gets runs of its own."""
    before = (world.folder / "params.yaml").read_text()
    world.snakemake()
    world.edit(sources__more={**world.params["sources"][DATASET], "documents": 10}, datasets=[DATASET, "more"])
    planned = world.snakemake("--dry-run")
    assert {f"{rule}:more" for rule in ("download_data", "tokenise", "perplexity")} <= set(planned)
    own = {f"generate:{folder}" for folder, run in runs(world).items() if (run.top, run.dataset) == ("runs", "more")}
    assert len(own) == len(world.params["methods"])
    assert own <= set(planned)
    # Drafter and calibration are of the tuning text of all data sets: what uses them is measured again, nothing else.
    again = {name.split("/")[1] for name in planned if name.startswith("generate:runs/") and name not in own}
    assert not again & {"autoregressive", "transformers", "prompt_lookup"}
    (world.folder / "params.yaml").write_text(before)


def test_changed_seed_runs_everything_that_draws(world: World):
    """Guards against prompts, models or splits that keep an old seed, and against fetching documents again."""
    every = world.snakemake("--dry-run", "--forceall")
    world.edit(seed=1)
    unseeded = {job for job in every if job == f"download_data:{DATASET}" or job.startswith("library:")}
    assert world.snakemake("--dry-run") == every - Counter(unseeded)


def test_an_interrupted_write_leaves_nothing(world: World):
    """Guards against half-written files: no temporary is left anywhere below the results."""
    assert not list(Path(world.folder / "results").rglob("*.part"))
