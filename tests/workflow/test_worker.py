"""A script or program that a worker runs behaves as in a Python of its own; the worker stays no longer than it may."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflow.world import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow

CALL = [sys.executable, str(ROOT / "workflow/scripts/worker.py"), "script.py"]
SCRIPT = """
import os, sys, time
from pathlib import Path
print(Path.cwd(), os.environ["DVC_STAGE"], *sys.argv[1:])
Path("process").write_text(str(os.getpid()))
copy = os.dup(1)
if sys.argv[1] == "raise":
    raise ValueError("what went wrong")
if sys.argv[1] == "stay":
    time.sleep(600)
sys.exit({"leave": None, "count": 3, "speak": "a last word"}[sys.argv[1]])
"""


# The process that Snakemake is, and the one that it was started or copied by.
SNAKEFILE = """
rule well:
    output: "{name}.well"
    shell: "echo $DVC_STAGE $PPID $(cut -d' ' -f4 /proc/$PPID/stat) > {output}"
rule ill:
    output: "{name}.ill"
    shell: "echo an error of its own >&2; exit 3"
rule stay:
    output: "{name}.stay"
    shell: "echo -n $$ > process; sleep 600"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a script and a library."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "dynatree").mkdir()
    (tmp_path / "dynatree/code.py").write_text("WORD = 1")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    return tmp_path


def called(checkout: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The script with `arguments`, by a worker."""
    variables = {"DVC_STAGE": "a", **variables}
    return subprocess.run(
        [*CALL, *arguments], cwd=checkout, env=ENVIRONMENT | variables, capture_output=True, text=True
    )


def snakemake(*arguments: str) -> list[str]:
    """The command for a worker, to make files with the tool itself."""
    return [*CALL[:-1], "snakemake", "--cores", "1", *arguments]


def process(checkout: Path) -> int:
    """That ran the script last."""
    return int((checkout / "process").read_text())


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [("leave", 0, ""), ("count", 3, ""), ("speak", 1, "a last word\n"), ("raise", 1, "ValueError: what went wrong\n")],
)
@pytest.mark.parametrize("switch", ["on", "off"])
def test_a_script_ends_and_speaks_as_by_itself(checkout: Path, how: str, status: int, said: str, switch: str) -> None:
    """Guards against failed jobs that count as done, and against a script in another folder or environment."""
    called(checkout, "leave", DYNATREE_WORKER=switch)
    done = called(checkout, how, "two words", DVC_STAGE="the caller's", DYNATREE_WORKER=switch)
    assert (done.returncode, done.stdout) == (status, f"{checkout} the caller's {how} two words\n")
    assert done.stderr.endswith(said) and bool(done.stderr) == bool(said)


def test_a_copy_of_a_stream_keeps_nobody_waiting(checkout: Path) -> None:
    """Guards against libraries that take copies of the streams: whoever reads them would wait for the worker's end."""
    variables = ENVIRONMENT | {"DVC_STAGE": "a"}
    piped = f"set -o pipefail; {shlex.join([*CALL, 'leave'])} 2>&1 | cat"
    for _ in range(2):
        subprocess.run(["bash", "-c", piped], cwd=checkout, env=variables, check=True, timeout=15)


def test_calls_share_a_process_until_something_changes(checkout: Path) -> None:
    """Guards against code, an environment or a failure's leavings of another call."""
    found = []

    def after(*arguments: str, **variables: str) -> int:
        called(checkout, *arguments, **variables)
        found.append(process(checkout))
        return found[-1]

    assert after("leave") == after("count") == after("leave", DVC_STAGE="b")
    (checkout / "dynatree/code.py").write_text("WORD = 2")
    assert after("leave") not in found[:-1]
    assert after("leave", HF_HOME="elsewhere") not in found[:-1]
    assert after("leave", DYNATREE_WORKER="off") not in found[:-1]
    last = after("raise")
    assert after("leave") != last


def test_calls_at_the_same_time_have_a_worker_each_that_ends_with_its_caller(checkout: Path) -> None:
    """Guards against a job that is ended and goes on, and against one that waits for another."""
    staying, busy = kept_busy(checkout, [*CALL, "stay"])
    assert called(checkout, "leave").returncode == 0 and process(checkout) != busy
    ended_with_its_caller(staying, busy)


def test_snakemake_is_copied_from_one_that_is_imported_and_is_as_by_itself(checkout: Path) -> None:
    """Guards against stages that fail and count as made, a state that one hands to the next, and a slow start each."""

    def made(*names: str, switch: str = "on") -> "subprocess.CompletedProcess[str]":
        variables = ENVIRONMENT | {"DVC_STAGE": "the caller's", "DYNATREE_WORKER": switch}
        return subprocess.run(snakemake(*names), cwd=checkout, env=variables, capture_output=True, text=True)

    said, itself, found = [], {}, {}
    for name, switch in {"a": "on", "b": "on", "c": "off"}.items():
        done = made(f"{name}.well", switch=switch)
        assert done.returncode == 0, done.stderr
        said.append(
            [line for line in done.stderr.splitlines() if line.startswith(("localrule", "    output", "1 of 1"))]
        )
        stage, itself[name], found[name] = (checkout / f"{name}.well").read_text().rsplit(" ", 2)
        assert stage == "the caller's" and len(said[-1]) == 3
    assert found["a"] == found["b"] != found["c"] and len({*itself.values()}) == 3
    assert said[0] == [line.replace("b.well", "a.well") for line in said[1]]
    assert said[0] == [line.replace("c.well", "a.well") for line in said[2]]
    failed = made("d.ill")
    assert failed.returncode == 1 and "an error of its own" in failed.stderr
    assert made("e.well").returncode == 0


def test_snakemake_is_ended_with_its_caller_as_from_a_terminal(checkout: Path) -> None:
    """Guards against `dvc repro` that is ended while its jobs go on, and against a lock that keeps the next one out."""
    staying, busy = kept_busy(checkout, snakemake("a.stay"))
    ended_with_its_caller(staying, busy)
    variables = ENVIRONMENT | {"DVC_STAGE": "b"}
    done = subprocess.run(snakemake("a.well"), cwd=checkout, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def kept_busy(checkout: Path, command: list[str]) -> "tuple[subprocess.Popen[bytes], int]":
    """The call of a `command` that stays, and the process that it keeps busy."""
    staying = subprocess.Popen(command, cwd=checkout, env=ENVIRONMENT | {"DVC_STAGE": "a"})
    while not (checkout / "process").exists() or not (checkout / "process").read_text():
        assert staying.poll() is None
        time.sleep(0.05)
    return staying, process(checkout)


def ended_with_its_caller(staying: "subprocess.Popen[bytes]", busy: int) -> None:
    """Kill the call, and wait for the end of what it keeps busy."""
    staying.send_signal(signal.SIGKILL)
    staying.wait()
    latest = time.monotonic() + 20
    while running(busy):
        assert time.monotonic() < latest, "what was called goes on without its caller"
        time.sleep(0.05)


def running(process: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except ProcessLookupError:
        return False
