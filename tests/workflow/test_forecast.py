"""What a larger study would take: parameters written larger, their jobs counted, grouped, weighed and scheduled."""

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from dynatree.study import estimate, grid, params
from tests.workflow.world import ROOT, World

SCRIPTS = ROOT / "workflow/scripts"


@pytest.fixture
def forecast(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("forecast")


def test_a_job_that_is_alone_has_a_whole_node(forecast: ModuleType) -> None:
    """Guards against a schedule in which timed jobs share a node, or start before what they need."""

    def hours(nodes: int, cores: int, *tasks: tuple[float, bool, list[int]]) -> float:
        found: float = forecast.schedule([forecast.Task("any", *task) for task in tasks], nodes, cores)
        return found

    small, timed = (2.0, False, []), (3.0, True, [])
    assert hours(1, 2, small, small) == 2 and hours(1, 1, small, small) == 4
    assert hours(1, 2, timed, timed) == 6 and hours(2, 2, timed, timed) == 3
    # A node with one core taken is not idle; two nodes have room for both kinds.
    assert hours(1, 2, small, timed) == 5 and hours(2, 2, small, timed) == 3
    assert hours(9, 2, (1.0, False, [1]), (2.0, True, [2]), (4.0, False, [])) == 7
    # The longest way to the end goes first, though its first job is the shortest.
    assert hours(1, 1, (1.0, True, []), (9.0, False, [0]), (2.0, True, []), (2.0, True, [])) == 14
    assert hours(2, 1, (2.0, True, []), (2.0, True, []), (1.0, True, []), (4.0, True, [2])) == 5


def test_jobs_of_a_group_that_need_one_another_are_submitted_together(forecast: ModuleType) -> None:
    """Guards against a group counted by its jobs, and against checksums counted that run where Snakemake runs."""
    job = importlib.import_module("stages").Job
    jobs = [
        job("library", {}, [], ["code"]),
        *(job("tokenise", {}, ["code"], [f"tokens {name}"]) for name in "ab"),
        *(job("choose_prompts", {}, [f"tokens {name}"], [f"prompts {name}{size}"]) for name in "ab" for size in "12"),
        job("generate", {}, ["prompts a1"], ["run"]),
        *(job("draw", {}, ["run"], [f"figure {number}"]) for number in range(5)),
    ]
    before = forecast.needs(jobs)
    assert before[3] == [1] and before[7] == [3]
    of = forecast.Profile(set(), {"tokenise": "text", "choose_prompts": "text", "draw": "figures"}, {"figures": 4})
    found = forecast.submissions(jobs, before, {"library"}, of)
    assert found == {"group text": 2, "group figures": 2, "generate": 1}


def test_files_are_as_large_as_those_that_are_locked(forecast: ModuleType, tmp_path: Path) -> None:
    """Guards against records counted by the file, whatever is decoded, and against a drafter as large as its target."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    known = params.read(tmp_path / "params.yaml")
    folders = [folder for folder, run in grid.expand(known).items() if run.top == "runs"][:2]
    tokens = known.sizes.prompts * known.sizes.output_tokens
    outs = {f"results/{folder}/outputs.jsonl": 10 * tokens for folder in folders}
    outs |= {"models/a/model.safetensors": 500, "models/a-drafter/model.safetensors": 100, "results/runs.parquet": 70}
    outs |= {"figures/one.svg": 3, "figures/two.svg": 5, "data/tokens/a/x.parquet": 8}
    written = {"stages": {"all": {"outs": [{"path": path, "size": size} for path, size in outs.items()]}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(written), encoding="utf-8")
    found = forecast.sizes(tmp_path)
    every = found.tokens
    assert every == sum(map(estimate.tokens, forecast.runs(known).values()))
    assert found.estimate("results/other/m/s/d/outputs.jsonl", 7, every) == pytest.approx(70)
    assert found.estimate("results/runs.parquet", 0, 3 * every) == pytest.approx(210)
    for path, size in (("models/b/model.safetensors", 500), ("models/b-drafter/model.safetensors", 100)):
        assert found.estimate(path, 0, every) == size
    assert found.estimate("figures/three.svg", 0, every) == 4
    assert found.estimate("data/tokens/b/y.parquet", 0, every) == 8
    assert found.estimate("figures/three.new", 0, every) == 0


@pytest.mark.slow
def test_a_larger_study_is_counted_as_its_graph_has_it(tmp_path: Path) -> None:
    """Guards against a study that is written larger than it is counted, or counted by other rules than those here."""
    world = World(tmp_path / "larger")
    asked = ["--scale", "tiny", "--pairs", 2, "--datasets", 3, "--prompts", 8, "--settings", 3]
    world.run("python", SCRIPTS / "enlarge.py", "--out", world.folder, *asked, cwd=ROOT)
    known = params.read(world.folder / "params.yaml")
    assert len(known.pairs) == 2 and known.datasets[2] == f"{known.datasets[0]}_2"
    runs = grid.expand(known).values()
    assert {run.prompts for run in runs} == {8}
    assert Counter(run.dataset for run in runs)[known.datasets[2]] == len(runs) / 3
    world.check()
    said = world.run("python", SCRIPTS / "forecast.py", "--root", world.folder, "--nodes", 1, "--nodes", 4, cwd=ROOT)
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    counted = {rule: int(row[0].replace(",", "")) for rule, row in rows.items() if len(row) == 2 and rule != "rule"}
    assert counted["generate"] == 2 * len(runs)
    assert counted["tokenise"] == 2 * 3 and counted["distil"] == 2
    assert counted["all"] == sum(number for rule, number in counted.items() if rule != "all")
    assert "of these 4 of group figures, 6 of group text" in said
    assert "on 1 node: " in said and "on 4 nodes: " in said


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("enlarge", ["--out", "build/none", "--scale", "huge"], "--scale: no 'huge'; choose one of tiny,"),
        ("enlarge", ["--out", "build/none", "--settings", "10000"], "--settings: 10000; there are 7200"),
        ("enlarge", ["--out", "build/none", "--pairs", "0"], "give at least 1"),
        ("forecast", ["--pair", "none"], "--pair: no 'none'; choose of smollm2,"),
        ("forecast", ["--job-seconds", "0"], "--job-seconds: 0.0; give more than 0"),
        ("forecast", ["--pace", "none.json"], "--pace none.json"),
        ("forecast", ["--profile", "none.yaml"], "none.yaml"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(script: str, options: list[str], said: str) -> None:
    """Guards against minutes of dry runs before a wrong word is found, and against a folder half written."""
    assert said in World(ROOT).run("python", SCRIPTS / f"{script}.py", *options, ok=False)
    assert not (ROOT / "build/none").exists()
