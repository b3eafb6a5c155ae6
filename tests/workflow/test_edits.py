"""What an edit makes again, in both tools, from dry runs on the tiny pair: the table of docs/workflow.md."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from dvc.repo import Repo

from tests.workflow.world import ROOT, World, runs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:_NoneStep")]  # of pygtrie, in DVC's own graph

DOCUMENT = ROOT / "docs/workflow.md"
# As a reader follows the graph.
ORDER = (
    *("download_data", "download_model", "tokenise", "distil", "distil_features", "choose_prompts", "perplexity"),
    *("calibrate", "calibrate_batches", "drafter_report", "generate", "timeline", "memory", "aggregate", "draw"),
)
RUNS = ("generate", "timeline", "memory")


def edit(**keys: object) -> Callable[[World], None]:
    return lambda world: world.edit(**keys)


def append(path: str, text: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        with (world.folder / path).open("a") as file:
            file.write(text)

    return change


def replace(path: str, before: str, after: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        text = (world.folder / path).read_text()
        assert before in text
        (world.folder / path).write_text(text.replace(before, after, 1))

    return change


def another_pair(world: World) -> None:
    world.edit(pairs__other=world.params["pairs"]["tiny"], pair="other")


def another_data_set(world: World) -> None:
    world.edit(sources__more={**world.params["sources"]["tiny_articles"], "documents": 10})
    world.edit(datasets=["tiny_articles", "more"])
    world.stages()


CODE = '\nANOTHER = "value"\n'
EDITS: dict[str, Callable[[World], None]] = {
    "D, B or tau of `dynatree`": edit(
        methods__dynatree__depth=31, methods__dynatree__branch=3, methods__dynatree__threshold=0.2
    ),
    "the prompt length": edit(scales__tiny__prompt_tokens=20),
    "the seed": edit(seed=1),
    "the pair": another_pair,
    "the recipe of the pair's `features`": edit(pairs__tiny__features__learning_rate=1e-3),
    "another data set": another_data_set,
    "a figure's code": append("dynatree/figures/tree_shape.py", CODE),
    "a docstring of library code": replace("dynatree/tree.py", '"""', '"""In other words: '),
    "a policy's code (`fixed.py`)": append("dynatree/policies/fixed.py", CODE),
    "the drafter's code (`model.py`)": append("dynatree/drafting/model.py", CODE),
    "a comment in a rule file": append("workflow/rules/common.smk", "# In other words.\n"),
    "the command of a rule": replace("workflow/rules/perplexity.smk", "2>&1", " 2>&1"),
}


class Made(NamedTuple):
    """A job or stage: its rule, and which method, data set or figure it is of, if any."""

    rule: str
    of: str


def by_snakemake(world: World, *options: str) -> set[Made]:
    found = set()
    for name in world.snakemake("--dry-run", *options):
        rule, _, values = name.partition(":")
        parts = values.split("/")
        place = {"generate": 1, "timeline": 0, "memory": 0, "draw": 0}.get(rule)
        found.add(Made(rule, "" if place is None else parts[place]))
    return {made for made in found if not made.rule.startswith("library")}


def by_dvc(world: World) -> set[Made]:
    """Stages that differ from dvc.lock once checksums of code are taken, and all that comes of them."""
    if world.run("git", "status", "--porcelain", "dynatree", "workflow"):
        sums = re.findall(r"results/library/\S+\.sha256", (world.folder / "dvc.lock").read_text())
        # By the faster of the tools: what they write is the same.
        world.run("snakemake", "--cores", 1, "--", *sorted({*sums}))
    with Repo(str(world.folder)) as repository, repository.lock:
        graph = repository.index.graph
        stale = {stage for stage in graph if stage.status() and not taken(stage)}
        waiting = [*stale]
        while waiting:
            further = set(graph.predecessors(waiting.pop())) - stale
            stale |= further
            waiting += further
        return {made for stage in stale for made in named(stage)}


def taken(stage: object) -> bool:
    """Whether a stage is of checksums."""
    return all(str(out.def_path).startswith("results/library/") for out in stage.outs)  # type: ignore[attr-defined]


def named(stage: object) -> list[Made]:
    """What a stage is of: its rule is told by the checksums that it depends on."""
    read = {str(dependency.def_path) for dependency in stage.deps}  # type: ignore[attr-defined]
    rules = [path for path in read if path.startswith("results/library/rules/")]
    made = Path(str(stage.outs[0].def_path)) if stage.outs else Path()  # type: ignore[attr-defined]
    if not rules:
        return []
    rule = Path(rules[0]).stem
    of = {"draw": made.stem}.get(rule, made.parts[2] if rule in RUNS else "")
    return [Made(rule, of)]


def said(made: set[Made], every: set[Made]) -> str:
    """Rules in order; of what, where it is not of all."""
    parts = []
    for rule in ORDER:
        own, all_of_it = ({m.of for m in group if m.rule == rule} for group in (made, every))
        if own:
            parts.append(rule if own == all_of_it else f"{rule} of {', '.join(sorted(own))}")
    return "; ".join(parts) or "nothing"


def table(text: str) -> dict[str, list[str]]:
    """The rows of the document's table by their first cell."""
    (found,) = re.findall(r"^\| edit \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture
def fresh(finished: World, tmp_path: Path) -> World:
    """A copy of the finished run for one edit."""
    copy = World(tmp_path / "checkout")
    copy.run("cp", "--archive", f"{finished.folder}/.", copy.folder, cwd=finished.folder)
    return copy


def test_the_table_has_every_edit() -> None:
    """Guards against an edit that the document tells of and nobody tries."""
    assert [*table(DOCUMENT.read_text(encoding="utf-8"))] == [*EDITS]


@pytest.fixture(scope="module")
def every(finished: World) -> set[Made]:
    """All jobs of the graph, whose methods and figures no edit here changes."""
    return by_snakemake(finished, "--forceall")


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_again_what_the_document_says(fresh: World, every: set[Made], name: str) -> None:
    """Guards against a stage that runs without need, one that does not run, and two tools that differ."""
    EDITS[name](fresh)
    found = [said(made, every) for made in (by_snakemake(fresh), by_dvc(fresh))]
    assert found == table(DOCUMENT.read_text(encoding="utf-8"))[name], f"| {name} | {found[0]} | {found[1]} |"


def test_a_data_set_that_comes_and_goes_leaves_calibration_alone(fresh: World) -> None:
    """Guards against hours of measuring again because a file of a data set that is gone still lies there."""
    before = (fresh.folder / "params.yaml").read_text()
    another_data_set(fresh)
    fresh.run("snakemake", "--cores", 1, "data/tokens/tiny/more.parquet", "results/perplexity/float64/more.json")
    (fresh.folder / "params.yaml").write_text(before)
    fresh.stages()
    assert not fresh.snakemake("--dry-run")
    assert not by_dvc(fresh)


@pytest.mark.parametrize("datasets", [["tiny_books"], ["tiny_articles", "tiny_books", "more"]])
def test_one_data_set_or_three_are_planned_alike(fresh: World, datasets: list[str]) -> None:
    """Guards against a graph that was written for two."""
    fresh.edit(sources__more={**fresh.params["sources"]["tiny_articles"], "documents": 10})
    experiments = {name: {**e, "datasets": datasets[:1]} for name, e in fresh.params["experiments"].items()}
    fresh.edit(datasets=datasets, tuning=datasets, experiments=experiments)
    fresh.stages()
    planned = fresh.snakemake("--dry-run", "--forceall")
    assert {name for name in planned if name.startswith("tokenise")} == {f"tokenise:{name}" for name in datasets}
    assert {run.dataset for run in runs(fresh).values() if run.top == "runs"} == set(datasets)
    with Repo(str(fresh.folder)) as repository:
        outs = {str(out.def_path) for stage in repository.index.stages for out in stage.outs}
    assert {f"results/perplexity/float64/{name}.json" for name in datasets} <= outs
