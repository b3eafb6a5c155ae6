"""The paper's pair and text through the whole graph, without its weights: local folders stand for the hub's."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from dynatree.study import grid, params
from tests.workflow import hub
from tests.workflow.world import ROOT, World

pytestmark = pytest.mark.slow

PAIR = "pythia-2.8b"
DATASETS = ["wikitext", "pg19"]
# Of the headline runs alone, so that minutes are enough.
FIGURES = ["datasets", "acceptance", "timeline"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A finished run of the entries that params.yaml has for the paper, in half precision; the hub is not asked."""
    home = tmp_path_factory.mktemp("hub")
    hub.pythia(home / "target", layers=4)
    hub.pythia(home / "drafter", layers=3)
    hub.wikitext(home / "wikitext")
    hub.pg19(home / "pg19")
    made = World(tmp_path_factory.mktemp("paper"), {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"})
    made.copy()
    made.shrink()
    changes: dict[str, Any] = {f"pairs__{PAIR}__{role}__repository": str(home / role) for role in ("target", "drafter")}
    changes |= {f"sources__{name}__repository": str(home / name) for name in DATASETS}
    # Long enough to loop: guesses that come true now and then do not pay by any costs, a loop's do by all.
    tiny = made.params["scales"]["tiny"] | {"output_tokens": 96}
    default = tiny["experiments"]["default"]
    instead = params.load(ROOT / "params.yaml")["scales"]["paper"]["instead"] | {"dtype": "bfloat16", "device": "cpu"}
    assert (instead["pair"], instead["datasets"]) == (PAIR, DATASETS)
    changes |= {
        "scales": {"tiny": tiny | {"experiments": {"default": default}, "instead": instead}},
        "experiments": {},
        "figures": FIGURES,
        "memory": ["dynatree"],
    }
    made.edit(datasets=["tiny_articles", "tiny_books"], **changes)
    made.snakemake()
    return made


@pytest.mark.parametrize("scale", ["study", "paper"])
def test_another_scale_is_one_key(tmp_path: Path, scale: str) -> None:
    """Guards against a scale that only one tool plans, or that stops before its first job."""
    made = World(tmp_path)
    made.copy()
    text = (ROOT / "params.yaml").read_text().replace("\nscale: laptop ", f"\nscale: {scale} ")
    (tmp_path / "params.yaml").write_text(text)
    runs = grid.expand(params.read(tmp_path / "params.yaml"))
    planned = made.snakemake("--dry-run")
    assert {name for name in planned if name.startswith("generate:")} == {f"generate:{folder}" for folder in runs}
    made.stages()
    made.run("git", "init", "-q")
    names = made.run("dvc", "stage", "list", "--name-only").split()
    known = params.read(tmp_path / "params.yaml")
    assert {f"generate_dynatree@{dataset}" for dataset in known.datasets} <= {*names}
    kinds = "|".join(["generate", *known.experiments])
    assert len([name for name in names if re.match(rf"({kinds})_", name)]) == len(runs)


def test_the_models_are_the_ones_of_the_repositories(world: World) -> None:
    """Guards against a random, distilled or substituted model, and against a drafter that another rule made."""
    layers = {PAIR: 4, f"{PAIR}-drafter": 3}
    for name, count in layers.items():
        folder = world.folder / "models" / name
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"] == "gpt_neox"
        assert (config["num_hidden_layers"], config["vocab_size"]) == (count, hub.ROWS)
        assert json.loads((folder / "manifest.json").read_text())["origin"]["kind"] == "hub"


def test_every_method_ran_in_half_precision_on_both_data_sets(world: World) -> None:
    """Guards against a method or a data set that drops out, and against timings in another precision."""
    known = params.read(world.folder / "params.yaml")
    rows = parquet.read_table(world.folder / "results/runs.parquet").to_pylist()
    assert {(row["method"], row["dataset"]) for row in rows} == {(m, d) for m in known.methods for d in DATASETS}
    assert json.loads((world.folder / "results/metrics.json").read_text())["machine"]["dtype"] == "bfloat16"
    drafted = {row["method"] for row in rows if row["acceptance_rate"]}
    assert drafted >= {"assisted", "linear", "fixed_tree", "dynatree_threshold", "dynatree"}


def test_half_precision_stays_exact_on_every_output(world: World) -> None:
    """Guards against a decoder that float32 alone shows to be exact, and against a tolerance that excuses anything."""
    audits = list((world.folder / "results").rglob("audit.jsonl"))
    rows = [json.loads(line) for path in audits for line in path.read_text().splitlines()]
    assert rows and all(row["largest_gap"] <= row["tolerance"] < 0.5 for row in rows)


def test_text_is_cut_as_the_data_sets_have_it(world: World) -> None:
    """Guards against WikiText's headings in prompts, and books that are taken for lines."""
    titles = {
        name: [row["title"] for row in parquet.read_table(world.folder / f"data/documents/{name}.parquet").to_pylist()]
        for name in DATASETS
    }
    assert {name: len(found) for name, found in titles.items()} == {"wikitext": 12, "pg19": 6}
    texts = parquet.read_table(world.folder / "data/documents/wikitext.parquet").column("text").to_pylist()
    assert titles["wikitext"][0] == "Document 0" and not [text for text in texts if "= History =" in text]


def test_figures_are_drawn_and_reported(world: World) -> None:
    """Guards against a figure that only the small pair's numbers can fill."""
    world.run("snakemake", "--cores", 1, "--report", "report.html")
    page = (world.folder / "report.html").read_text(encoding="utf-8")
    for name in FIGURES:
        assert (world.folder / f"figures/{name}.caption.txt").read_text()
        assert f'"figures/{name}.svg"' in page
