"""The picture of the rooms shows what the code imports."""

from pathlib import Path

import pytest

from tests.workflow.world import ROOT, World

SCRIPT = ROOT / "workflow/scripts/rooms.py"


def test_the_picture_is_of_the_code():
    """Guards against a picture of rooms or imports that are gone, or that lacks new ones."""
    World(ROOT).run("python", SCRIPT, "--check")


@pytest.mark.parametrize(
    ("written", "instead", "refused"),
    [("costs imports dynatree", "costs imports dynatree, engine", True), (" modules<", "9 modules<", False)],
)
def test_another_import_makes_another_picture(tmp_path: Path, written: str, instead: str, refused: bool):
    """Guards against a check that lets any picture pass, and against one that asks for a new one for a plug-in."""
    picture, world = (ROOT / "docs/rooms.svg").read_text(encoding="utf-8"), World(ROOT)
    assert written in picture
    (tmp_path / "rooms.svg").write_text(picture.replace(written, instead), encoding="utf-8")
    said = world.run("python", SCRIPT, "--check", "--out", tmp_path / "rooms.svg", ok=not refused)
    assert ("run `make rooms`" in said) == refused
