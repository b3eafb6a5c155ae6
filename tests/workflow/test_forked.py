"""A script in a fork behaves as in a Python of its own."""

import subprocess
from pathlib import Path

import pytest

from tests.workflow.world import ENVIRONMENT

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys, torch
from beside import WORD
print(os.getcwd(), os.environ["ASKED"], torch.get_num_threads(), WORD, *sys.argv[1:])
if sys.argv[1] == "raise":
    raise ValueError("what went wrong")
sys.exit({"leave": None, "count": 3, "speak": "a last word"}[sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [("leave", 0, ""), ("count", 3, ""), ("speak", 1, "a last word\n"), ("raise", 1, "ValueError: what went wrong\n")],
)
def test_a_fork_ends_and_speaks_as_the_script_does(
    forks: dict[str, str], tmp_path: Path, how: str, status: int, said: str
) -> None:
    """Guards against failed jobs that count as done, and against a script in another folder or environment."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("WORD = 'found'")
    done = subprocess.run(
        ["bash", "-c", f"python script.py {how} 'two words'"],
        cwd=tmp_path,
        env=ENVIRONMENT | forks | {"ASKED": "by the caller"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (status, f"{tmp_path} by the caller 1 found {how} two words\n")
    assert done.stderr.endswith(said) and bool(done.stderr) == bool(said)
