"""What is added to a finished run is made, and nothing else, on the tiny pair. Tests build on each other."""

import json
from pathlib import Path

import pytest

from tests.workflow.world import World, jobs, runs

pytestmark = pytest.mark.slow

DATASET = "tiny_articles"


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


def test_a_figure_and_a_policy_are_one_file_and_one_line_each(world: World):
    """Guards the promise of CONTRIBUTING: nothing else is edited, and nothing else is made or measured again."""
    before = (world.folder / "params.yaml").read_text()
    added = {world.folder / "dynatree/figures/extra.py": FIGURE, world.folder / "dynatree/policies/extra.py": POLICY}
    for file, text in added.items():
        file.write_text(text)

    # Where this checkout is what is installed.
    run = World(world.folder, {"PYTHONPATH": str(world.folder)}).run
    world.edit(figures=[*world.params["figures"], "extra"])
    assert set(jobs(run("snakemake", "--cores", 1, "all"))) == {"draw:extra", "library:draw-figures.extra"}
    assert (world.folder / "figures/extra.caption.txt").read_text().strip().endswith(" runs.")
    world.edit(methods__extra={"decoder": "speculative", "policy": "extra", "drafting": "model"})
    ran = set(jobs(run("snakemake", "--cores", 1, "all")))
    own = {name for name in ran if name.startswith("generate:")}
    assert own and {name.split("/")[1] for name in own} == {"extra"}
    assert {name.partition(":")[0] for name in ran - own} <= {"library", "aggregate", "draw", "draw_replay"}
    assert "extra" in json.loads((world.folder / "results/metrics.json").read_text())
    run("python", "workflow/scripts/stages.py")
    names = world.run("dvc", "stage", "list", "--name-only").split()
    assert {"draw_extra", f"generate_extra@{DATASET}"} <= {*names}
    for file in added:
        file.unlink()
    (world.folder / "params.yaml").write_text(before)
    world.stages()


def test_a_data_set_is_one_entry_and_its_name(world: World):
    """The same for text: it gets runs of its own."""
    before = (world.folder / "params.yaml").read_text()
    world.snakemake()  # what an earlier test left to be made
    world.edit(sources__more={**world.params["sources"][DATASET], "documents": 10}, datasets=[DATASET, "more"])
    planned = world.snakemake("--dry-run")
    assert {"download_data:more", "tokenise:more", f"perplexity:{world.params['dtype']}/more"} <= set(planned)
    own = {f"generate:{folder}" for folder, run in runs(world).items() if (run.top, run.dataset) == ("runs", "more")}
    assert len(own) == len(world.params["methods"])
    assert own <= set(planned)
    # Drafter and calibration are of the tuning text of all data sets: what uses them is measured again, nothing else.
    again = {name.split("/")[1] for name in planned if name.startswith("generate:runs/") and name not in own}
    assert not again & {"autoregressive", "transformers", "prompt_lookup"}
    (world.folder / "params.yaml").write_text(before)


def test_a_stopped_benchmark_goes_on(world: World):
    """Guards against measuring again what a killed benchmark had measured, or one of fewer kinds of text; against
    keeping what other code had measured, and against a benchmark in `all`."""
    few = {"methods": ["autoregressive", "transformers", "linear", "dynatree"], "also": {}}
    few["texts"] = {"greedy": {}}
    world.edit(benchmark={**world.params["benchmark"], **few, "grids": {"linear": {"draft_tokens": [1, 2]}}})

    def benchmark() -> None:
        world.snakemake(target="figures/benchmark.svg")

    def records() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (world.folder / "results/benchmark").glob("*/*/*/*.json")}

    benchmark()
    before = records()
    kinds = {path.parent.name.partition("-")[0] for path in before}
    assert kinds == {"greedy", "tuned_greedy", "calibration"}
    lost = next(path for path in before if path.parent.name.startswith("greedy"))
    for path in (lost, world.folder / "results/benchmark.parquet", world.folder / "figures/benchmark.svg"):
        path.unlink()
    texts = world.params["benchmark"]["texts"]
    world.edit(benchmark__texts={**texts, "sampled": {"do_sample": True}})
    benchmark()
    after = records()
    assert {path.parent.name.partition("-")[0] for path in set(after) - set(before)} == {"sampled", "tuned_sampled"}
    assert [path for path in before if after[path] != before[path]] == [lost]
    world.edit(benchmark__texts=texts)
    assert not world.snakemake("--dry-run")
    policy = world.folder / "dynatree/policies/cost_aware.py"
    policy.write_text(policy.read_text() + '\nDECODES = "in another way"\n')
    benchmark()
    assert len(records()) == len(after) + len(before)
