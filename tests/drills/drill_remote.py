"""Results travel: pushed to a remote, cloned, pulled, and nothing is to be done there."""

import subprocess
from pathlib import Path

from tests.drills.drill_faults import STEPS
from tests.drills.transcript import Transcript, make
from tests.workflow.world import World


def test_push_clone_pull(tmp_path: Path) -> None:
    """A folder as remote: the clone has models, data and results without measuring anything."""
    world = World(tmp_path / "first")
    world.make()
    page = Transcript(
        world,
        "Hand-over through a remote",
        "A finished checkout is pushed to a DVC remote (a folder; any kind that DVC knows works alike), cloned and "
        "pulled. There is nothing to do there, in either tool.",
    )
    page.run(*make("all"), keep=STEPS)
    page.run("dvc", "commit", "--force", "--quiet")
    page.run("dvc", "remote", "add", "--default", "store", tmp_path / "store", keep="Setting")
    page.run("git", "add", "-A")
    page.run("git", "commit", "-qm", "a finished run")
    page.run("dvc", "push", keep="pushed|uptodate|up to date")
    other = tmp_path / "second"
    page.run("git", "clone", "-q", world.folder, other, cwd=tmp_path)
    page.run("dvc", "pull", "--quiet", cwd=other)
    page.run(*make("touch"), keep=STEPS, cwd=other)
    said = page.run(*make("all"), keep=STEPS, cwd=other)
    assert "Nothing to be done" in said
    repeated = page.run("dvc", "repro", keep="Running|up to date", cwd=other)
    assert "Running stage" not in repeated
    status = subprocess.run(["git", "status", "--porcelain", "dvc.lock"], cwd=other, capture_output=True, text=True)
    assert status.stdout == ""
    page.write("remote")
