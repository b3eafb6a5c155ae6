"""`dynatree distil` and `dynatree drafter-report`: from text files to a drafter and its report; errors at once."""

import json
import re
from pathlib import Path

import pytest

from dynatree import files
from dynatree.commands import cli
from dynatree.commands.distil import recipe
from dynatree.errors import UserError
from dynatree.study import params
from tests.distil.worlds import target_folder

SMALL = ("layers=[0]", "vocabulary=200", "tokens=256", "length=16", "labels.tokens=300", "labels.rows=4")
SMALL += ("labels.prompt_tokens=8", "labels.new_tokens=8", "dtype=float32")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a target and a text."""
    monkeypatch.chdir(tmp_path)
    target_folder(tmp_path / "target")
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"The tree number {number} grows. " * 60)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    cli.main([str(argument) for argument in arguments])
    return capsys.readouterr()


def test_text_becomes_a_drafter_and_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the way of a user with a target of their own; a second run finds the work done."""
    changes = [part for change in SMALL for part in ("--set", change)]
    for _ in range(2):
        run(capsys, "distil", "--target", "target", "--text", "corpus", "--out", "drafter", "--threads", 1, *changes)
    written = {path.name for path in (folder / "drafter").iterdir()}
    assert written == {*files.DRAFTER_FILES, files.SUCCESSORS}
    (trained,) = (folder / "drafter.work").glob("*/part")
    record = files.read_json(trained / "record.json")
    assert record["recipe"]["labels"]["tokens"] == 300
    assert record["data"]["corpus"]["split"] == "tuning"
    run(capsys, "distil", "--target", "target", "--part", trained, "--out", "again")
    assert files.sha256(folder / "again" / files.WEIGHTS) == files.sha256(folder / "drafter" / files.WEIGHTS)

    options = ("--target", "target", "--drafter", "drafter", "--text", "corpus/1.txt", "--tokens", 128, "--threads", 1)
    options += ("--length", 48)  # with the continuation within the target's context
    printed, _ = run(capsys, "drafter-report", *options, "--json")
    found = json.loads(printed)
    assert set(found) == {"agreement", "cost", "simulated"} and not found["simulated"]
    printed, _ = run(capsys, "drafter-report", *options)
    assert "a drafter step takes" in printed and "no calibration of this pair was given" in printed

    pair = ("--target", "target", "--drafter", "drafter", "--text", "corpus/0.txt", "--threads", 1)
    sizes = ("--prompts", 2, "--prompt-tokens", 8, "--output-tokens", 8, "--contexts", 8, "--repeats", 1)
    run(capsys, "calibrate", *pair, *sizes, "--out", "costs")
    printed, _ = run(capsys, "drafter-report", *options, "--calibration", "costs")
    assert "simulated on 1" in printed and "oracle K" in printed
    both = ("--drafter", "again", "--calibration", "costs", "--calibration", "costs")
    printed, _ = run(capsys, "drafter-report", *options, *both)
    assert sorted(line.split()[0] for line in printed.splitlines()) == ["again", "drafter", "drafter", "lookup"]
    printed, _ = run(capsys, "drafter-report", *options, *both, "--json")
    reports = json.loads(printed)
    assert list(reports) == ["drafter", "again"]
    # The same weights and costs: only the measured cost of a step may differ.
    assert reports["drafter"]["simulated"] == reports["again"]["simulated"] != {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "nowhere"], "--text: no file or folder 'nowhere'"),
        (["--text", "corpus", "--text", "corpus/../corpus"], "are both called 'corpus'; rename one"),
        (["--text", "corpus", "--set", "layers"], "--set layers: write KEY=VALUE"),
        (["--text", "corpus", "--set", "lairs=[0]"], "recipe: lairs: Extra inputs are not permitted"),
        (["--text", "corpus", "--recipe", "nobody"], "--recipe: no 'nobody'; choose one of smollm2, "),
        (["--text", "corpus", "--recipe", "pythia-2.8b"], "is of kind hub; choose one that is trained"),
        (["--part", "corpus"], "corpus: no record.json"),
        (["--part", "corpus", "--start", "corpus"], "--start: is of a training, and with --part nothing is trained"),
        (["--part", "corpus", "--recipe", "smollm2"], "--recipe: is of a training"),
        (["--part", "corpus", "--set", "layers=[0]"], "--set: is of a training"),
        (["--part", "corpus", "--work", "corpus"], "--work: is of a training"),
        (["--part", "corpus", "--seed", "0"], "--seed: is of a training"),
        (["--part", "corpus", "--device", "cpu"], "--device: is of a training"),
    ],
)
def test_bad_arguments_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """Guards against a traceback, or a long computation before the error."""
    with pytest.raises(SystemExit):
        run(capsys, "distil", "--target", "target", "--out", "drafter", *arguments)
    assert said in capsys.readouterr().err


def test_a_part_wants_no_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a part that is refused since the pair of params.yaml has a drafter that is not trained."""
    text = params.default_path().read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(re.sub("(?m)^pair: smollm2", "pair: pythia-2.8b", text), encoding="utf-8")
    with pytest.raises(SystemExit):
        run(capsys, "distil", "--target", "target", "--out", "drafter", "--part", "corpus")
    assert "corpus: no record.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--drafter", "a", "--drafter", "b"], "--calibration: 0 for 2 drafters"),
        (["--drafter", "a", "--drafter", "b", "--calibration", "c"], "--calibration: 1 for 2 drafters"),
        (["--drafter", "a", "--calibration", "b", "--calibration", "c"], "--calibration: 2 for 1 drafters"),
        (["--drafter", "target", "--length", "1"], "--length: 1; give at least 2"),
        (["--drafter", "a", "--drafter", "a"], "--drafter: a a; give each once"),
        (["--drafter", "target", "--calibration", "nowhere"], "calibration nowhere: "),
    ],
)
def test_a_comparison_wants_a_calibration_for_each(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """Guards against one drafter's costs taken for another's."""
    with pytest.raises(SystemExit):
        run(capsys, "drafter-report", "--target", "target", "--text", "corpus/1.txt", *arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["reads=[1, 2]"], "the target's states come with its labels; give labels, and tokens: 0"),
        (["reads=[1, 2]", "tokens=0", "labels=null"], "give labels, and tokens: 0"),
        (["tokens=0"], "tokens: 0; give at least 1"),
        (["reads=[2, 1]", "tokens=0"], "reads: [2, 1]; give numbers of layers, ascending, from 1 on"),
        (["reads=[0, 1]", "tokens=0"], "reads: [0, 1]; give numbers"),
        (["reads=[1]", "tokens=0", "levels=5"], "levels: 5; give at most half of length, 4"),
        (["labels.penalties=[1.0, 0]"], "labels.penalties: 0.0; choose more than 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(assignments: list[str], said: str) -> None:
    """Guards against hours of labelling for a drafter that reads nothing, or that has no phase."""
    values = {"layers": [0], "norm_scale": 1, "vocabulary": 9, "negatives": 0, "tokens": 9, "batch": 1, "length": 9}
    values |= {"learning_rate": 1e-3, "repeat_share": 0, "labels": {"tokens": 5}}
    with pytest.raises(UserError, match=re.escape(said)):
        recipe(values, assignments)
    assert recipe(values, ["reads=[1, 2]", "tokens=0"]).reads == (1, 2)


def test_assignments_reach_into_sections() -> None:
    """Guards against a dotted key that is taken for a name, and against changing the parameters' own values."""
    values = {"layers": [0], "norm_scale": 1, "vocabulary": 9, "negatives": 0, "tokens": 9, "batch": 1, "length": 9}
    values |= {"learning_rate": 1e-3, "repeat_share": 0, "labels": {"tokens": 5}}
    assert recipe(values, ["labels.tokens=7", "layers=[1, 2]"]).labels.tokens == 7
    assert recipe(values, ["labels=null"]).labels is None
    assert values["labels"] == {"tokens": 5}
    with pytest.raises(UserError, match=r"labels\.tokens: .* \(got 0\)"):
        recipe(values, ["labels.tokens=0"])
