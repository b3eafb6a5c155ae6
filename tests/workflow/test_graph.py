"""Snakemake and DVC describe one job graph."""

import ast
import re
from collections import Counter
from pathlib import Path

import grimp
import pytest
from dvc.repo import Repo

from dynatree.measuring import calibrate
from dynatree.study import grid, params, sections
from dynatree.tables.schema import APART
from tests.workflow.world import ROOT, World


def plan(target: str) -> list[tuple[set[str], set[str]]]:
    """(inputs, outputs) of every job that Snakemake would run from nothing."""
    text = World(ROOT).run("snakemake", "--cores", 1, "--dry-run", "--forceall", target)
    jobs = []
    for block in re.split(r"^(?:local)?rule \w+:$", text, flags=re.M)[1:]:
        found = {
            key: set(match[1].split(", ")) if (match := re.search(rf"^    {key}: (.*)$", block, re.M)) else set()
            for key in ("input", "output")
        }
        if found["output"]:
            jobs.append((found["input"], found["output"]))
    return jobs


@pytest.fixture(scope="module")
def planned() -> list[tuple[set[str], set[str]]]:
    """The jobs of `all`."""
    return plan("all")


@pytest.mark.parametrize("name", APART)
def test_what_is_asked_for_apart_is_planned_with_names_that_can_be_made(name: str) -> None:
    """Guards against file names beyond 255 bytes: the benchmark decodes with every plug-in."""
    outputs = set().union(*(made for _, made in plan(f"figures/{name}.svg")))
    assert f"results/{name}.parquet" in outputs
    assert max(len(part.encode()) for path in outputs for part in Path(path).parts) < 200


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
        ]


def test_every_planned_file_belongs_to_one_stage(planned, stages):
    """Guards against a file that only one of the tools makes, or that two stages claim."""
    made = Counter(out for _, _, outs in stages for out in outs)
    assert set(made.values()) == {1}
    assert set(made) == {out for _, outs in planned for out in outs}


def test_each_stage_names_exactly_what_its_job_reads(planned, stages):
    """Guards against a change that one tool notices and the other does not."""
    jobs = [(inputs, outputs) for inputs, outputs in planned]
    for name, dependencies, outs in stages:
        inputs = {path for job_inputs, job_outputs in jobs if job_outputs <= outs for path in job_inputs}
        rules = {path for path in dependencies if path.startswith("workflow/rules/")}
        assert len(rules) == 2, name
        assert "workflow/rules/common.smk" in rules, name
        unread = {d for d in dependencies - rules if not any(Path(i).is_relative_to(d) for i in inputs)}
        # A data set's kind decides which of the source helpers it uses; the stage names them all.
        assert not unread or name.startswith("download_data"), (name, unread)
        undeclared = {i for i in inputs if not any(Path(i).is_relative_to(d) for d in dependencies)}
        assert not undeclared, (name, undeclared)


def test_each_job_depends_on_exactly_the_library_files_that_it_imports(planned):
    """Guards against a changed library file that recomputes nothing, and against a theme that measures runs again."""
    graph = grimp.build_graph("dynatree")
    made = {output: inputs for inputs, outputs in planned for output in outputs}
    for inputs, outputs in planned:
        if sorted(outputs)[0].startswith("results/library/"):
            continue
        (script,) = (path for path in inputs if path.startswith("workflow/scripts/"))
        (stands,) = (path for path in inputs if path.startswith("results/library/"))
        assert not [path for path in inputs if path.startswith("dynatree/")]
        named = {
            ".".join(Path(path).with_suffix("").parts) for path in made[stands] if not path.endswith("__init__.py")
        }
        wanted = imports(ROOT / script, graph.modules) | plugs(sorted(outputs)[0])
        wanted |= {module for name in wanted for module in graph.find_upstream_modules(name)}
        # A package stands for its __init__, which is named where it has code.
        packages = {name for name in wanted if (ROOT / name.replace(".", "/")).is_dir()}
        assert named == wanted - packages, script
        assert ("dynatree/decoding/__init__.py" in made[stands]) == any(
            name.startswith("dynatree.decoding") for name in named
        )


def plugs(output: str) -> set[str]:
    """Plug-ins that the parameters name for the job of an output."""
    known, parts = params.read(ROOT / "params.yaml"), Path(output).parts
    run = {**grid.expand(known), **grid.passes(known)}.get("/".join(parts[1:-1]))
    if run:
        knobs = dict(run.knobs)
        return {f"dynatree.decoding.{run.decoder}"} | {
            f"dynatree.{folder}.{knobs[knob]}" for knob, folder in sections.PLUGGED.items() if knob in knobs
        }
    if parts[:2] == ("results", "calibration") and parts[2] != "batches.json":
        watched = {f"dynatree.{sections.PLUGGED[knob]}.{calibrate.DECODING[knob]}" for knob in ("policy", "drafting")}
        return {"dynatree.decoding.speculative", "dynatree.policies.chain", "dynatree.drafting.lookup"} | watched
    if parts[:2] == ("data", "documents"):
        return {f"dynatree.data.sources.{known.sources[Path(output).stem].kind}"}
    return {f"dynatree.figures.{parts[1].split('.')[0]}"} if parts[0] == "figures" else set()


def imports(script: Path, modules: set[str]) -> set[str]:
    """Modules of the library that a script itself imports."""
    statements = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {(node.module, alias.name) for node in statements for alias in node.names}
    return {f"{module}.{name}" if f"{module}.{name}" in modules else module for module, name in names} & modules


def test_dvc_yaml_is_what_the_rules_and_parameters_give():
    """Guards against a method, experiment, figure or imported file that dvc.yaml does not know yet."""
    World(ROOT).run("python", "workflow/scripts/stages.py", "--check")


def test_lint():
    """Snakemake's own linter finds nothing."""
    assert "Congratulations" in World(ROOT).run("snakemake", "--lint")


def test_a_key_that_stands_twice_stops_before_any_job(tmp_path):
    """Guards against the last of two values being taken silently, by the tool that reads the file for itself."""
    world = World(tmp_path)
    world.make()
    with (tmp_path / "params.yaml").open("a") as file:
        file.write("seed: 7\n")
    text = world.run("snakemake", "--cores", 1, "--dry-run", "all", ok=False)
    assert "key 'seed' stands there twice" in text.strip().splitlines()[-1]


def test_bad_parameters_stop_before_any_job():
    """Guards against a traceback, or hours of work, before a wrong value is noticed; the last line says it all."""
    text = World(ROOT).run("snakemake", "--cores", 1, "--dry-run", "all", "--config", "scale=huge", ok=False)
    assert "scale: no 'huge'; choose one of tiny, laptop" in text.strip().splitlines()[-1]
