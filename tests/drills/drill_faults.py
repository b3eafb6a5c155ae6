"""What goes wrong on machines: killed jobs, a second make, no memory, a full disk. Each leaves its transcript."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from dynatree import files
from dynatree.study import grid, params
from tests.drills.transcript import STEPS, Running, Transcript, make
from tests.workflow.world import World

RULES = (
    *("download_data", "download_model", "tokenise", "choose_prompts", "distil", "calibrate", "calibrate_batches"),
    *("generate", "memory", "timeline", "drafter_report", "perplexity", "aggregate", "draw"),
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A checkout in a folder whose name has spaces and letters beyond ASCII."""
    made = World(tmp_path / "Bäume mit Lücken")
    made.make()
    return made


def records(world: World) -> dict[Path, int]:
    """Records and tables that are there, each read to its end, with the time it was written."""
    found = {}
    for path in sorted((world.folder / "results").rglob("*")):
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            files.read_jsonl(path)
        elif path.suffix == ".parquet":
            parquet.read_table(path)
        if path.suffix in (".json", ".jsonl", ".parquet"):
            found[path] = path.stat().st_mtime_ns
    return found


def test_killed_in_every_kind_of_job(world: World) -> None:
    """Nothing half-written is read, finished runs are not repeated, no lock has to be lifted by hand."""
    page = Transcript(
        world,
        "Killed in every kind of job",
        "`make all` is killed (`kill -9` of the whole family) while a job of each rule runs, and started again each "
        "time. What was written by then can be read to its end, and what was finished is not measured again.",
    )
    finished: dict[Path, int] = {}
    left = set(RULES)
    while left:
        running = Running(world, *make("all"))
        # Whichever of them begins first: while one is waited for, another's last job may end.
        running.wait_for(rf"^(?:local)?rule (?:{'|'.join(sorted(left))}):|{STEPS}")
        begun = re.findall(rf"^(?:local)?rule ({'|'.join(sorted(left))}):", running.output, re.M)
        if not begun:
            running.process.wait()
            break
        rule = begun[0]
        time.sleep(0.2)  # the quickest job takes 0.4 s
        running.kill()
        now = records(world)
        runs = {path: at for path, at in now.items() if path.name == files.TIMINGS}
        assert all(runs.get(path) == at for path, at in finished.items())
        finished = runs
        if f"(Rule: {rule})" in running.output:
            continue  # it had ended: another of its jobs, if there is one
        left.discard(rule)
        page.note(f"make all    # killed in rule {rule}", f"{len(now)} records and tables are whole", "whole")
    assert len(left) < len(RULES) / 3, f"never killed in {', '.join(sorted(left))}"
    (world.folder / "results/metrics.json").unlink(missing_ok=True)  # something to do for the first of two
    running = Running(world, *make("all"))
    running.wait_for(r"^localrule|^rule")
    second = subprocess.run(make("all"), cwd=world.folder, capture_output=True, text=True)
    assert second.returncode != 0
    page.say("While one `make all` runs, a second one says so and stops:")
    page.note("make all", second.stdout + second.stderr, "another make")
    assert "another make is running the job graph here" in second.stderr
    running.wait_for(STEPS, 900)
    running.process.wait()
    page.say("The first one ends:")
    page.note("make all", running.output, STEPS)
    after = records(world)
    assert all(after[path] == at for path, at in finished.items())
    page.run(*make("all"), keep=STEPS)
    page.write("killed")


def test_a_run_without_memory_leaves_the_others(world: World) -> None:
    """A run that cannot get memory fails with its message; the others go on, and `partial` names what is missing."""
    page = Transcript(
        world,
        "A run without memory",
        "One run's address space is limited; its job fails and says why. The others are made by a command of their "
        "own, and the target `partial` makes tables of what is there and names what is missing.",
    )
    expanded = grid.expand(params.read(world.folder / "params.yaml"))
    run = next(folder for folder in expanded if folder.startswith("runs/linear/"))
    prompts = "data/prompts/tiny/default/tiny_articles.parquet"
    page.run("snakemake", "--cores", 1, "results/calibration/float32/costs.json", prompts, keep=STEPS)
    limited = f"ulimit -v 1500000; snakemake --cores 1 results/{run}/timings.json"
    failed = page.run("bash", "-c", limited, keep=r"(?i)cannot allocate|map segment|^error", ok=False)
    assert "Error in rule generate" in failed  # the job, not Snakemake
    assert re.search(r"(?i)memory|allocate|map segment", failed)
    others = [f"results/{name}/timings.json" for name in expanded if name.startswith("runs/") and name != run]
    page.run("snakemake", "--cores", 1, *others, keep=STEPS)
    said = page.run("snakemake", "--cores", 1, "partial", keep="^missing: runs")
    assert f"missing: {run}" in said
    page.write("memory")


@contextmanager
def mounted(*options: str, at: Path) -> Iterator[None]:
    """A mount for a while. Skips where this user may not mount."""
    at.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=False)


def test_a_full_disk(tmp_path: Path) -> None:
    """A clear error, nothing corrupt, and once there is room the same command goes on."""
    home = tmp_path / "small"
    with mounted("-t", "tmpfs", "-o", "size=64m", "tmpfs", at=home):
        world = World(home / "world")
        world.make()
        page = Transcript(
            world,
            "A full disk",
            "The checkout lies on a file system with hardly any room. The job that finds it full says so; what was "
            "written before is whole. With room, the same command goes on.",
        )
        filler = home / "filler"
        free = os.statvfs(home).f_bavail * os.statvfs(home).f_frsize
        filler.write_bytes(b"\0" * max(0, free - 600_000))
        failed = page.run(*make("all"), keep="^error: .*No space left", ok=False)
        assert "No space left on device" in failed and "Traceback" not in failed
        records(world)
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=400m", str(home)], check=True)
        page.run(*make("all"), keep=STEPS)
        page.write("full_disk")


def test_a_read_only_checkout(world: World) -> None:
    """`make` says what it cannot write; the command line decodes all the same."""
    page = Transcript(
        world,
        "A checkout that cannot be written",
        "A checkout with its models is mounted read-only. The workflow cannot take its lock there and says so; "
        "`dynatree generate` needs no more than the models.",
    )
    page.run("snakemake", "--cores", 1, "models/tiny/manifest.json", "models/tiny-drafter/manifest.json", keep=STEPS)
    with mounted("--bind", str(world.folder), at=world.folder):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(world.folder)], check=True)
        failed = page.run(*make("all"), keep="(?i)read-only", ok=False)
        assert "Read-only file system" in failed
        generate = ("dynatree", "generate", "--target", "tiny", "--drafter", "tiny-drafter", "--prompt", "The river")
        said = page.run(*generate, "--method", "linear", "--max-new-tokens", 12, keep="tokens")
        assert "Traceback" not in failed + said
    page.write("read_only")
