"""`dynatree demo`: what it shows is what the models decode, and what it measured is kept."""

import re
from pathlib import Path

import pytest

from dynatree import DynaTree
from dynatree.commands import cli, demo

ASKED = ("demo", "--target", "target", "--drafter", "target", "--threads", "1", "--dtype", "float64")


pytestmark = pytest.mark.usefixtures("at_home")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = 0
    try:
        cli.main([*ASKED, *arguments])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, *capsys.readouterr()


def test_it_shows_both_methods_and_a_tree(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a demonstration that shows something else than what the library decodes."""
    status, said, _ = call(capsys, "--max-new-tokens", "24")
    assert status == 0
    with DynaTree.from_pretrained("target", method="autoregressive", dtype="float64") as plain:
        found = plain.generate(demo.PROMPT, 24)
    assert f"{demo.PROMPT}{found.text}" in said
    forwards = {name: int(count) for name, count in re.findall(r"^(\w+) +[\d.]+ +(\d+)$", said, re.M)}
    assert forwards["autoregressive"] == found.trace.target_forwards > forwards["dynatree"]
    assert "times as fast; the same tokens" in said
    assert "node   position" in said and "attention mask" in said


def test_costs_are_measured_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a minute of measuring at every call."""
    kept = {path: path.stat().st_mtime_ns for path in (home / "cache").rglob("costs.json")}
    assert len(kept) == 1
    assert call(capsys, "--max-new-tokens", "4")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (home / "cache").rglob("costs.json")} == kept


def test_a_wrong_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a minute of work before a slip is noticed."""
    status, _, said = call(capsys, "--drafter", "nobody")
    assert status == 2 and "'nobody'" in said
