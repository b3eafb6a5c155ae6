"""The paper's pair and text through the whole graph, without its weights: local folders stand for the hub's."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import yaml

from dynatree import params
from tests.workflow import hub
from tests.workflow.world import World

pytestmark = pytest.mark.slow

PAIR = "pythia-2.8b"
NAMES = {"tiny_articles": "wikitext", "tiny_books": "pg19"}


def renamed(value: Any) -> Any:
    """The same parameters on the paper's data sets."""
    if isinstance(value, dict):
        return {key: renamed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner) for inner in value]
    return NAMES.get(value, value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A finished run of the entries that params.yaml has for the paper, in half precision; the hub is not asked."""
    home = tmp_path_factory.mktemp("hub")
    hub.pythia(home / "target", layers=4, heads=4, seed=0)
    hub.pythia(home / "drafter", layers=2, heads=2, seed=1)
    hub.wikitext(home / "wikitext")
    hub.pg19(home / "pg19")
    made = World(tmp_path_factory.mktemp("paper"))
    made.make()
    path = made.folder / "params.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(values | renamed({k: v for k, v in values.items() if k != "sources"}), sort_keys=False))
    changes = {f"pairs__{PAIR}__{role}__repository": str(home / role) for role in ("target", "drafter")}
    changes |= {f"sources__{name}__repository": str(home / name) for name in NAMES.values()}
    made.edit(pair=PAIR, dtype="bfloat16", datasets=list(NAMES.values()), **changes)
    made.run("env", f"HF_HOME={home}", "HF_HUB_OFFLINE=1", "snakemake", "--cores", 1, "all")
    return made


def test_half_precision_stays_exact_on_every_output(world: World) -> None:
    """Guards against a decoder that float32 alone shows to be exact."""
    audits = list((world.folder / "results").rglob("audit.jsonl"))
    rows = [json.loads(line) for path in audits for line in path.read_text().splitlines()]
    assert rows and all(row["largest_gap"] <= row["tolerance"] for row in rows)
