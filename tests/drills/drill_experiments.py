"""DVC's experiments: one more value of a parameter, a queue of them, and the table that compares them."""

import json
from pathlib import Path

from tests.drills.drill_remote import finished
from tests.drills.transcript import Transcript

KNOB = "methods.dynatree.threshold"
SHOWN = r"threshold|tokens_per_iteration|Running stage|Ran experiment|Queued experiment|^ *workspace|^ *main|^ *[├└]"
SPEED = "results/metrics.json:dynatree.throughput"


def ran(page: Transcript, *command: str, keep: str = SHOWN) -> set[str]:
    """Stages that this command ran, up to their items."""
    said = page.run(*command, keep=keep)
    return {line.split("'")[1].split("@")[0] for line in said.splitlines() if line.startswith("Running stage")}


def test_experiments(tmp_path: Path) -> None:
    """Another tau measures DynaTree alone, whether at once or from the queue, and all of them stand in one table."""
    world, page = finished(
        tmp_path / "world",
        "Experiments through DVC",
        "A finished checkout of the tiny pair, whose speeds mean nothing. `dvc exp run -S` changes a key of "
        "`params.yaml`, runs what depends on it, and keeps parameters, tables and figures as a commit of its own.",
    )
    page.run("git", "add", "-A")
    page.run("git", "commit", "-qm", "a finished run")
    page.say("One value, here and now. Only DynaTree is measured again:")
    stages = ran(page, "dvc", "exp", "run", "--name", "tau-0.2", "-S", f"{KNOB}=0.2")
    assert "generate_dynatree" in stages and not stages & {"generate_autoregressive", "generate_linear", "calibrate"}
    page.run("dvc", "params", "diff", keep="threshold")
    page.run("dvc", "metrics", "diff", keep=r"Path|dynatree\.(tokens_per|throughput|acceptance)")
    page.say("Two more into the queue, then all that is queued, each in a copy of the checkout:")
    for tau in ("0.3", "0.4"):
        ran(page, "dvc", "exp", "run", "--queue", "--name", f"tau-{tau}", "-S", f"{KNOB}={tau}")
    page.run("dvc", "exp", "run", "--run-all", "--jobs", "1", keep="Ran experiment|tau-")
    page.say("All of them side by side, with the columns that matter:")
    table = ("dvc", "exp", "show", "--drop", ".*", "--keep", r".*(dynatree\.threshold|dynatree\.throughput)", "--md")
    page.run(*table, "--no-pager", keep=r"\|")
    shown = json.loads(world.run("dvc", "exp", "show", "--json"))
    names = {
        experiment["revs"][0]["name"] if "revs" in experiment else experiment.get("name")
        for commit in shown
        for experiment in commit.get("experiments") or []
    }
    assert names == {"tau-0.2", "tau-0.3", "tau-0.4"}
    page.say("The one that is kept becomes the checkout's state:")
    page.run("dvc", "exp", "apply", "tau-0.3", keep="Changes|applied|tau")
    assert world.params["methods"]["dynatree"]["threshold"] == 0.3
    page.write("experiments")
