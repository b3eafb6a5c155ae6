"""Models and what was measured of them, found by their folders."""

from pathlib import Path

import pytest

from dynatree import files
from dynatree.costs.calibration import COSTS
from dynatree.engine import checkpoint
from dynatree.measuring.loading import calibration_beside


def test_a_calibration_is_found_by_the_drafter_that_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against costs of one of a pair's drafters for the other, and against none where they were measured."""
    monkeypatch.setattr(checkpoint, "fingerprint", lambda folder: folder.name)
    models, home = tmp_path / "models", tmp_path / "results/calibration"
    measured = {"plain": home / "int4", "reading": home / files.READING / "int4"}
    for name, folder in measured.items():
        files.write_json(folder / COSTS, {"models": {"target": "target", "drafter": name}})
    for name, folder in measured.items():
        pair = {"target": models / "target", "drafter": models / name}
        assert calibration_beside(pair, "int4") == folder
        assert calibration_beside(pair, "float32") is None
    assert calibration_beside({"target": models / "target", "drafter": models / "third"}, "int4") is None
    assert calibration_beside({"target": models / "other", "drafter": models / "plain"}, "int4") is None
