"""Snakemake and DVC describe one job graph."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import grimp
import pytest
from dvc.repo import Repo

from dynatree import settings
from dynatree.code_checksums import counts
from dynatree.measuring import calibrate
from dynatree.study import grid, params
from dynatree.tables.schema import APART
from tests.workflow.world import ROOT, World, jobs


class Job(NamedTuple):
    """One that Snakemake would run from nothing: its rule, its script, files in and out, and what runs it."""

    rule: str
    script: str
    inputs: set[str]
    outputs: set[str]
    command: str


@cache
def plan(target: str, *config: str) -> list[Job]:
    """Every job that makes a file of the graph, with these values in place of those of params.yaml."""
    changed = ["--config", *config] if config else []
    forced = ["--dry-run", "--forceall", "--printshellcmds", *changed]
    text = World(ROOT).run("snakemake", "--cores", 1, *forced, "--", target)
    blocks = re.split(r"^(?:local)?rule (\w+):$", text, flags=re.M)
    found = []
    for rule, block in zip(blocks[1::2], blocks[2::2], strict=True):
        files = [
            set(match[1].split(", ")) if (match := re.search(rf"^    {key}: (.*)$", block, re.M)) else set()
            for key in ("input", "output")
        ]
        if files[1]:
            (command,) = re.findall(r"^Shell command: (.*)$", block, re.M)
            (script,) = re.findall(r"^(?:\w+=\w+ )?python (workflow/scripts/\w+\.py) ", command)
            found.append(Job(rule, script, *files, command))
    return found


@pytest.fixture(scope="module")
def planned() -> list[Job]:
    """The jobs of `all`."""
    return plan("all")


@pytest.mark.parametrize("name", APART)
def test_what_is_asked_for_apart_is_planned_with_names_that_can_be_made(name: str) -> None:
    """Guards against file names beyond 255 bytes: the benchmark decodes with every plug-in."""
    outputs = set().union(*(job.outputs for job in plan(f"figures/{name}.svg")))
    assert f"results/{name}.parquet" in outputs
    assert max(len(part.encode()) for path in outputs for part in Path(path).parts) < 200


def test_the_benchmark_compares_within_each_of_its_formats() -> None:
    """Guards against one format by the costs of another, or among its records."""
    every = plan("figures/benchmark.svg", "benchmark={dtypes: [int4, float32]}")
    made = {out: job for job in every for out in job.outputs}
    for dtype, other in (("int4", "float32"), ("float32", "int4")):
        job = made[f"results/benchmark/{dtype}/benchmark.parquet"]
        assert f"results/calibration/{dtype}/costs.json" in job.inputs
        assert not [path for path in job.inputs if f"/{other}/" in path]
        assert f"--records results/benchmark/{dtype} " in job.command and f"--dtype {dtype} " in job.command
        assert f"results/benchmark/{dtype}/benchmark.parquet" in made["results/benchmark.parquet"].inputs


def test_llama_cpp_is_compared_on_the_cpu_alone() -> None:
    """Guards against our GPU beside its CPU, after hours of calibration."""
    paper = ["--config", "scale=paper"]
    said = World(ROOT).run("snakemake", "--cores", 1, "--dry-run", "figures/llama_cpp.svg", *paper, ok=False)
    assert "UserError: scales.paper.instead.device: cuda; llama.cpp computes on the CPU here: write cpu" in said


def test_the_benchmark_leaves_out_what_would_read_by_no_drafter_that_does() -> None:
    """Guards against the default method once more, under the name of another."""

    def methods(*options: str) -> tuple[set[str], str]:
        # Whether or not it is there already.
        forced = ["--forcerun", "side_by_side", "--", "results/benchmark.parquet"]
        made = ["--dry-run", "--printshellcmds", *options, *forced]
        (command,) = re.findall(
            r"^Shell command: python workflow/scripts/benchmark.py (.*)$",
            World(ROOT).run("snakemake", "--cores", 1, *made),
            re.M,
        )
        return {*json.loads(re.findall(r"--methods '(.*?)' --grids", command)[0])}, command

    every, command = methods()
    assert "dynatree_reading" in every and "--left-out" not in command
    left, command = methods("--config", "pair=pythia-2.8b")
    assert every - left == {"dynatree_reading"} and "--left-out dynatree_reading --dtype" in command


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, set[str], set[str]]]:
    """(name, dependencies, outs) of every DVC stage, parameters apart."""
    with Repo(str(ROOT)) as repository:
        return [
            (
                stage.addressing,
                {str(dep.def_path) for dep in stage.deps if dep.def_path != "params.yaml"},
                {str(out.def_path) for out in stage.outs},
            )
            for stage in repository.index.stages
            if stage.outs
        ]


def test_every_planned_file_belongs_to_one_stage(planned, stages):
    """Guards against a file that only one of the tools makes, or that two stages claim."""
    made = Counter(out for _, _, outs in stages for out in outs)
    assert set(made.values()) == {1}
    assert set(made) == {out for job in planned for out in job.outputs}


def test_each_stage_names_exactly_what_its_job_reads(planned, stages):
    """Guards against a change that one tool notices and the other does not."""
    for name, dependencies, outs in stages:
        inputs = {path for job in planned if job.outputs <= outs for path in job.inputs}
        (rule,) = {job.rule for job in planned if job.outputs <= outs}
        if rule.startswith("library"):
            rules = {path for path in dependencies if path.startswith("workflow/rules/")}
            assert {"workflow/rules/common.smk", "workflow/rules/library.smk"} <= rules or rule == "library_of_rules"
        else:
            rules = {f"results/library/rules/{rule}.sha256"}
            assert rules <= dependencies, name
        unread = {d for d in dependencies - rules if not any(Path(i).is_relative_to(d) for i in inputs)}
        # A data set's kind decides which files fetch it; the stage names those of all kinds.
        assert not unread or rule == "library_of_source", (name, unread)
        undeclared = {i for i in inputs if not any(Path(i).is_relative_to(d) for d in dependencies)}
        assert not undeclared, (name, undeclared)


def code(planned: list[Job]) -> Iterator[tuple[Job, set[str]]]:
    """Every job that computes something, with the files that its checksums of code are of."""
    made = {output: job.inputs for job in planned for output in job.outputs}
    for job in planned:
        if not job.rule.startswith("library"):
            assert not [path for path in job.inputs if path.startswith(("dynatree/", "workflow/"))]
            for stands in {path for path in job.inputs if path.startswith("results/library/")}:
                yield job, made[stands]


def test_each_job_depends_on_exactly_the_code_that_it_runs(planned):
    """Guards against a changed file that recomputes nothing, and against a theme that measures runs again."""
    graph = grimp.build_graph("dynatree")
    for package in [name for name in graph.modules if folder(name).is_dir()]:
        # What only names others draws nothing in.
        if not counts(folder(package) / "__init__.py"):
            for other in graph.find_modules_directly_imported_by(package):
                graph.remove_import(importer=package, imported=other)
    seen = Counter()
    for job, named in code(planned):
        wanted = imports(ROOT / job.script, graph.modules) | plugs(sorted(job.outputs)[0])
        wanted |= {module for name in wanted for module in graph.find_upstream_modules(name)}
        packages = {".".join(name.split(".")[:depth]) for name in wanted for depth in range(1, name.count(".") + 2)}
        files = {folder(name).with_suffix(".py") for name in wanted}
        files |= {folder(name) / "__init__.py" for name in packages}
        # What a package compiles is code of it.
        files |= {path for name in packages for path in folder(name).glob("*.[ch]pp")}
        own = {path.relative_to(ROOT).as_posix() for path in files if path.is_file() and counts(path)}
        assert named == {job.script, *own}, job.script
        seen[job.rule] += 1
    assert seen == Counter(job.rule for job in planned if not job.rule.startswith("library"))


MODEL = {"engine", "generation", "verification", "decoding", "drafting", "policies", "costs", "measuring", "distil"}
SAID = {"figures", "tables", "study", "commands"}


def test_groups_of_code_follow_the_rooms(planned):
    """Guards against hours of measuring again after a change of a figure, a table or a check of params.yaml; against
    figures that are drawn again after a change of the engine."""
    for job, named in code([*planned, *(job for name in APART for job in plan(f"figures/{name}.svg"))]):
        # Of the command that the moving picture is made by, which loads no model.
        own = {f"dynatree/commands/{name}.py" for name in ("options", *(("lanes",) * (job.rule == "draw_replay")))}
        rooms = {Path(path).parts[1] for path in named - own if path.count("/") > 1}
        if job.rule in ("draw", "draw_replay"):
            assert not rooms & (MODEL | {"study", "commands", "data"}), job
        elif job.rule == "aggregate":
            assert not rooms & (MODEL - {"engine"} | SAID - {"tables"}), job
        else:
            # The benchmark writes its own tables.
            own = {"tables"} if Path(job.script).stem in ("benchmark", "benchmark_table") else set()
            assert not rooms & (SAID - own), job


def plugs(output: str) -> set[str]:
    """Plug-ins that the parameters name for the job of an output."""
    known, parts = params.read(ROOT / "params.yaml"), Path(output).parts
    run = {**grid.expand(known), **grid.passes(known)}.get("/".join(parts[1:-1]))
    if run:
        knobs = dict(run.knobs)
        return {f"dynatree.decoding.{run.decoder}"} | {
            f"dynatree.{folder}.{knobs[knob]}" for knob, folder in settings.PLUGGED.items() if knob in knobs
        }
    if parts[:2] == ("results", "calibration") and parts[3] != "batches.json":
        decoded = (calibrate.CONTINUING, calibrate.DECODING, calibrate.LOOKING)
        named = {f"dynatree.{plugs}.{knobs[knob]}" for knobs in decoded for knob, plugs in settings.PLUGGED.items()}
        return {"dynatree.decoding.speculative"} | named
    if parts[:2] == ("data", "documents"):
        return {f"dynatree.data.sources.{known.sources[Path(output).stem].kind}"}
    # The moving picture is no figure of its own.
    drawn = parts[0] == "figures" and Path(output).stem != "replay"
    return {f"dynatree.figures.{Path(output).name.split('.')[0]}"} if drawn else set()


def folder(module: str) -> Path:
    """Where a module's file lies, but for the suffix; a package's folder."""
    return ROOT / module.replace(".", "/")


def imports(script: Path, modules: set[str]) -> set[str]:
    """Modules of the library that a script itself imports."""
    statements = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {(node.module, alias.name) for node in statements for alias in node.names}
    return {f"{module}.{name}" if f"{module}.{name}" in modules else module for module, name in names} & modules


def test_dvc_yaml_is_what_the_rules_and_parameters_give():
    """Guards against a method, experiment, figure or imported file that dvc.yaml does not know yet."""
    World(ROOT).run("python", "workflow/scripts/stages.py", "--check")


def changed(folder: Path, **changes: Any) -> World:
    """The checkout's files as they are, but for keys of params.yaml."""
    world = World(folder)
    world.copy()
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).write_text((ROOT / name).read_text())
    world.edit(**changes)
    world.check()
    return world


WANTED = "run `make dvc.yaml`"
ABLATION = "experiments__ablation"


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"methods__dynatree__threshold": 0.2, "seed": 3, "experiments__batch_size__batches": [1, 2]}, False),
        ({"methods__dynatree__threshold": None}, True),
        ({f"{ABLATION}__also__mine": {"like": "dynatree", "depth": 3}}, True),
        ({f"{ABLATION}__also__without_lookup": {"like": "dynatree", "drafting": "model", "depth": 3}}, True),
        ({"figures": ["datasets"]}, True),
        ({"scale": "study"}, True),
        (
            {"datasets": ["wikipedia"], "tuning": ["wikipedia"], "experiments__prompt_length__datasets": ["wikipedia"]},
            True,
        ),
    ],
    ids=["values", "null", "method", "inherited", "figure", "scale", "data set"],
)
def test_a_stale_dvc_yaml_says_so_in_both_tools(tmp_path, changes, stale):
    """Guards against a DVC that runs another graph in silence, and against a line that cries without need."""
    world = changed(tmp_path, **changes)
    assert (WANTED in world.stages("--quick", ok=False)) == stale
    if {"seed", "scale"} & changes.keys():  # one of each: the same question, and seconds for Snakemake to begin
        assert (WANTED in world.run("snakemake", "--cores", 1, "--dry-run", "data")) == stale
    text = (tmp_path / "dvc.yaml").read_text()
    world.stages()
    assert ((tmp_path / "dvc.yaml").read_text() != text) == stale


@pytest.mark.parametrize(
    "changes",
    [
        {"experiments__batch_size__datasets": ["wikipedia", "gutenberg"]},
        {"scales__laptop__leaves_out": ["batch_size", "penalised", "chains", "draft_noise_cool", "precision"]},
        {"scales__laptop__leaves_out": []},
    ],
    ids=["data sets", "more left out", "nothing left out"],
)
def test_dvc_chooses_prompts_anew_for_what_any_experiment_asks(tmp_path, changes):
    """Guards against runs that want more prompts than were chosen, since no size of the scale has changed."""
    world = changed(tmp_path)
    world.run("dvc", "config", "core.no_scm", "true")
    seen = []
    for edit in ({}, changes):
        world.edit(**edit)
        world.stages()
        with Repo(str(tmp_path)) as repository:
            stages = [stage for stage in repository.index.stages if (stage.name or "").startswith("choose_prompts")]
            seen.append({stage.name: [dep.read_params() for dep in stage.params] for stage in stages})
    before, after = seen
    assert {"choose_prompts@wikipedia", "choose_prompts@gutenberg"} <= {*before} & {*after}
    assert not [name for name in {*before} & {*after} if before[name] == after[name]]


def test_dvc_makes_tables_anew_without_settings_that_a_scale_takes_back(tmp_path):
    """Guards against settings that are no longer asked for, and stay in DVC's tables."""
    world = changed(tmp_path)
    world.run("dvc", "config", "core.no_scm", "true")
    seen = []
    for further in (["D4_B2_tau0.03_N64"], []):
        size = {
            **world.params["scales"]["laptop"]["experiments"]["default"],
            "settings": {"dynatree_threshold": further},
        }
        world.edit(scales__laptop__experiments__tree_shape=size)
        world.stages()
        with Repo(str(tmp_path)) as repository:
            (stage,) = [stage for stage in repository.index.stages if stage.name == "aggregate"]
            seen.append([dep.read_params() for dep in stage.params])
    assert seen[0] != seen[1]


def test_the_tables_are_of_one_machine_with_every_calibration(tmp_path):
    """Guards against trees by another machine's costs, where those of the tables are of another drafter or format."""
    world = World(tmp_path)
    world.copy()
    known = params.read(tmp_path / "params.yaml")
    # The drafter that reads is the one of the tables; one method drafts by the other.
    assert known.methods["dynatree"].reads
    world.edit(methods__dynatree_threshold__reads=False)
    world.check()
    said = world.run("snakemake", "--cores", 1, "--dry-run", "--printshellcmds", "--forceall", "results/metrics.json")
    (command,) = re.findall(r"^Shell command: python workflow/scripts/aggregate.py (.*)$", said, re.M)
    costs, further = (
        {*re.findall(rf"--{name} (.*?)(?= --)", command)[0].split()} for name in ("costs", "calibrations")
    )
    assert "results/calibration/features/float32/costs.json" in costs
    assert "results/calibration/float32/costs.json" in further and not costs & further
    calibrations = re.findall(r"results/calibration/\S*?(?:costs|batches)\.json", said)
    assert costs | further == {path.strip(",") for path in calibrations}


def test_another_import_makes_dvc_yaml_stale(tmp_path):
    """Guards against a file that DVC does not watch."""
    world = changed(tmp_path)
    with (tmp_path / "dynatree/tree.py").open("a") as file:
        file.write("\n\nfrom dynatree.data import splits\n")
    assert WANTED in world.stages("--quick", ok=False)


def test_dvc_stops_at_a_stale_dvc_yaml(tmp_path):
    """Guards against a graph of yesterday that is measured for hours."""
    world = changed(tmp_path, figures=["datasets"])
    world.run("dvc", "config", "core.no_scm", "true")
    said = world.run("dvc", "repro", ok=False)
    assert WANTED in said and "Running stage 'library" not in said


def test_an_edit_of_dynatree_moves_what_is_like_it(tmp_path):
    """Guards against an ablation of yesterday's DynaTree, in a folder of its own settings."""
    world = changed(tmp_path, methods__dynatree__threshold=0.2)
    world.run("dvc", "config", "core.no_scm", "true")
    with Repo(str(tmp_path)) as repository:
        outs = [str(out.def_path) for stage in repository.index.stages for out in stage.outs]
    like = [name for name, entry in world.params["experiments"]["ablation"]["also"].items() if "like" in entry]
    for name in like:
        folders = {path.split("/")[3] for path in outs if path.startswith(f"results/ablation/{name}/")}
        assert folders and all("_tau0.2_" in folder for folder in folders), name
    assert len(like) >= 4
    moved = {run.folder for run in grid.expand(params.read(tmp_path / "params.yaml")).values() if run.method in like}
    assert {f"results/{folder}/timings.json" for folder in moved} <= {*outs}


def test_lint():
    """Snakemake's own linter finds nothing."""
    assert "Congratulations" in World(ROOT).run("snakemake", "--lint")


def test_a_key_that_stands_twice_stops_before_any_job(tmp_path):
    """Guards against the last of two values being taken silently, by the tool that reads the file for itself."""
    world = World(tmp_path)
    world.copy()
    with (tmp_path / "params.yaml").open("a") as file:
        file.write("seed: 7\n")
    text = world.run("snakemake", "--cores", 1, "--dry-run", "all", ok=False)
    assert "key 'seed' stands there twice" in text.strip().splitlines()[-1]


def test_bad_parameters_stop_before_any_job():
    """Guards against a traceback, or hours of work, before a wrong value is noticed; the last line says it all."""
    text = World(ROOT).run("snakemake", "--cores", 1, "--dry-run", "all", "--config", "scale=huge", ok=False)
    assert "scale: no 'huge'; choose one of tiny, laptop" in text.strip().splitlines()[-1]


def test_a_format_that_the_machine_lacks_stops_before_any_job():
    """Guards against runs that are refused one by one, after models, text and drafter are made."""
    code = "import sys; sys.modules['openvino'] = None; from snakemake.cli import main; main()"
    text = World(ROOT).run("python", "-c", code, "--cores", 1, "--dry-run", "all", ok=False)
    assert "scales.laptop.instead.dtype: int4 needs OpenVINO" in text.strip().splitlines()[-1]


def test_mended_words_make_nothing_stale(tmp_path):
    """Guards against a comment that measures anew, in Snakemake, which follows a job that was run to what it feeds."""
    world, made = World(tmp_path), "data/documents/tiny_articles.parquet"
    world.copy()
    world.snakemake(target=made)
    for path in ("dynatree/data/documents.py", "workflow/scripts/download_data.py"):
        with (tmp_path / path).open("a") as file:
            file.write("# What it is for.\n")
    assert "Nothing to be done" in world.run("snakemake", "--cores", 1, "--dry-run", made)
    with (tmp_path / "workflow/scripts/download_data.py").open("a") as file:
        file.write("SIZE = 3\n")
    assert set(jobs(world.run("snakemake", "--cores", 1, "--dry-run", made))) == {
        "library_of_source:tiny_articles",
        "download_data:tiny_articles",
    }
