"""`dynatree demo`: what it shows is what the models decode, and what it measured is kept."""

import re
import sys
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


def test_it_shows_both_methods_and_a_tree(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a demonstration that shows something else than what the library decodes, and against silence on a
    terminal while it loads."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, said, told = call(capsys, "--max-new-tokens", "24")
    assert status == 0
    table = {row[0]: row[1:] for row in re.findall(r"^(.+?) +[\d.]+ +[\d.]+ +[\d.]+  (\d+) for (\d+)$", said, re.M)}
    with (
        DynaTree.from_pretrained("target", method="autoregressive", dtype="float64") as plain,
        DynaTree.from_pretrained("target", drafter="target", dtype="float64") as trees,
    ):
        for name, asked in demo.TEXTS.items():
            found = plain.generate(demo.PROMPT, 24, skip_special_tokens=True, **asked)
            assert f"{demo.PROMPT}{found.text}" in said
            # A drafter as dear as the target may draft nothing.
            drafted = trees.generate(demo.PROMPT, 24, **asked).trace.target_forwards
            assert table[name] == (str(drafted), str(found.trace.target_forwards))
    assert "with drafts and without: the same tokens" in said
    assert "node   position" in said and "attention mask" in said
    assert "loading target and target (float64) ..." in told and "loaded in" in told


def test_costs_are_measured_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a minute of measuring at every call."""
    assert call(capsys, "--max-new-tokens", "4")[0] == 0  # whatever ran before
    kept = {path: path.stat().st_mtime_ns for path in (home / "cache").rglob("costs.json")}
    assert len(kept) == 1
    assert call(capsys, "--max-new-tokens", "4")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (home / "cache").rglob("costs.json")} == kept


def test_a_wrong_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a minute of work before a slip is noticed."""
    status, _, said = call(capsys, "--drafter", "nobody")
    assert status == 2 and "'nobody'" in said
