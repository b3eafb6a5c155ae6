"""DVC's experiments: one more value of a parameter, a queue of them, and the table that compares them."""

import json
from pathlib import Path

from tests.drills.transcript import Transcript, commit, finished

KNOB = "methods.dynatree.threshold"
SHOWN = r"^(Running stage|Ran experiment|Queued experiment)"


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
    commit(page)
    page.say("One value, here and now. Only DynaTree is measured again:")
    stages = ran(page, "dvc", "exp", "run", "--name", "tau-0.2", "-S", f"{KNOB}=0.2")
    assert "generate_dynatree" in stages and not stages & {"generate_autoregressive", "generate_linear", "calibrate"}
    page.run("dvc", "params", "diff", keep="threshold")
    page.run("dvc", "metrics", "diff", keep=r"Path|dynatree\.")
    page.say("The same as a page of bars, lines and figures, old and new:")
    page.run("dvc", "plots", "diff", "--out", "build/plots", keep="html")
    assert (world.folder / "build/plots/static/HEAD_figures_tree_shape.svg").is_file()
    page.say("Two more into the queue, then all that is queued, each in a copy of the checkout:")
    for tau in ("0.3", "0.4"):
        ran(page, "dvc", "exp", "run", "--queue", "--name", f"tau-{tau}", "-S", f"{KNOB}={tau}")
    said = page.run("dvc", "exp", "run", "--run-all", "--jobs", "1", keep=r"^(Reproducing experiment|Failed)")
    assert said.count("Running stage 'generate_dynatree@") == 2 and "Running stage 'calibrate'" not in said
    page.say("All of them side by side, with the columns that matter:")
    columns = r"Experiment|.*dynatree\.(threshold|tiny_articles\.(speedup|tokens_per_iteration))$"
    page.run("dvc", "exp", "show", "--drop", ".*", "--keep", columns, "--md", "--no-pager", keep=r"\|")
    lines = world.run("dvc", "exp", "show", "--json").splitlines()
    commits = json.loads(next(line for line in lines if line.startswith("[")))
    found = [each for commit in commits for each in commit["experiments"] or []]
    # What failed or waits is listed, too, under its name.
    assert all(each["executor"] is None or each["executor"]["state"] == "success" for each in found)
    values = {each["name"]: each["revs"][0]["data"]["params"]["params.yaml"]["data"] for each in found}
    taus = {name: value["methods"]["dynatree"]["threshold"] for name, value in values.items()}
    assert taus == {"tau-0.2": 0.2, "tau-0.3": 0.3, "tau-0.4": 0.4}
    page.say("The one that is kept becomes the checkout's state:")
    page.run("dvc", "exp", "apply", "tau-0.3", keep="Changes|applied|tau")
    assert world.params["methods"]["dynatree"]["threshold"] == 0.3
    page.write("experiments")
