"""The picture of the rules is of the job graph."""

from pathlib import Path

from tests.workflow.world import ROOT, World

SCRIPT = ROOT / "workflow/scripts/rule_graph.py"


def test_the_picture_is_of_the_rules(tmp_path: Path) -> None:
    """Guards against a picture that lacks a rule, and against a check that lets any picture pass."""
    world, picture = World(ROOT), ROOT / "docs/rule_graph.svg"
    world.run("python", SCRIPT, "--check")
    text = picture.read_text(encoding="utf-8")
    assert "generate needs" in text
    (tmp_path / "other.svg").write_text(text.replace("generate needs", "generate needs memory,"), encoding="utf-8")
    said = world.run("python", SCRIPT, "--check", "--out", tmp_path / "other.svg", ok=False)
    assert "run `make rule_graph`" in said
