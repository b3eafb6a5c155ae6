"""What is added to a finished run is made, and nothing else, on the tiny pair. Tests build on each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.world import World, jobs, runs

pytestmark = pytest.mark.slow

DATASET = "tiny_articles"


def test_a_stopped_benchmark_goes_on(world: World):
    """Guards against measuring again what a killed benchmark had measured, or one of fewer kinds of text; against
    keeping what other code had measured, and against a benchmark in `all`."""
    few = {"methods": ["autoregressive", "transformers", "linear", "dynatree"], "also": {}}
    few["texts"] = {"greedy": {}}
    world.edit(benchmark={**world.params["benchmark"], **few, "grids": {"linear": {"draft_tokens": [1, 2]}}})

    def benchmark() -> None:
        world.snakemake(target="figures/benchmark.svg")

    def records() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (world.folder / "results/benchmark").glob("*/*/*.json")}

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
    written = policy.read_text()
    policy.write_text(written + '\nDECODES = "in another way"\n')
    benchmark()
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
        self.world.stages()


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
        assert others <= {"library", "aggregate", "draw", "draw_replay"}
        assert "extra" in json.loads((world.folder / "results/metrics.json").read_text())


def test_a_data_set_is_one_entry_and_its_name(world: World):
    """The same for text: it gets runs of its own."""
    before = (world.folder / "params.yaml").read_text()
    world.snakemake()
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
