"""The trained parts in drafters/ are what the parameters' recipes give, small, and never saw evaluation text."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynatree import files
from dynatree.distil import part
from dynatree.distil.recipe import Recipe
from dynatree.study import params

ROOT = Path(__file__).resolve().parents[2]
PARTS = sorted(path.parent for path in (ROOT / "drafters").glob(f"*/{part.RECORD}"))


@pytest.mark.parametrize("folder", PARTS, ids=lambda folder: folder.name)
def test_a_shipped_part_is_the_recipe_of_its_pair(folder: Path) -> None:
    """Guards against parameters that would train another drafter than the one that is measured."""
    record, known = part.read_record(folder), params.read(ROOT / "params.yaml")
    of = {name: pair.drafter for name, pair in known.pairs.items()}
    of |= {files.features_of(name): pair.features for name, pair in known.pairs.items() if pair.features}
    assert part.from_nothing(record) == Recipe(**of[folder.name])
    # A training that went on from another had other text and labels than all before it.
    sittings = [record]
    while "start" in sittings[-1]:
        sittings.append(sittings[-1]["start"])
    seeds = [sitting["seed"] for sitting in sittings]
    assert seeds[-1] == known.seed and len(set(seeds)) == len(seeds)
    assert {data["split"] for data in record["data"].values()} == {"tuning"}


@pytest.mark.parametrize("folder", PARTS, ids=lambda folder: folder.name)
def test_a_shipped_part_is_whole_and_small(folder: Path) -> None:
    """Guards against weights of another precision, an embedding among them, or a vocabulary of another size."""
    layers = load_file(folder / part.LAYERS)
    assert {value.dtype for value in layers.values()} == {torch.float16}
    assert not any(("embed" in name or "head" in name) and value.dim() == 2 for name, value in layers.items())
    assert (folder / part.LAYERS).stat().st_size < 25e6
    vocabulary = files.read_json(folder / files.DRAFT_VOCABULARY)
    assert len(set(vocabulary)) == len(vocabulary) == part.read_record(folder)["recipe"]["vocabulary"]
    assert (folder / "LICENSE").is_file()
