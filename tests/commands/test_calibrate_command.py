"""`dynatree calibrate`: what it measures is what `dynatree generate` reads."""

import json
import shutil
from pathlib import Path

import pytest

from dynatree.commands import cli
from tests.distil.worlds import target_folder

SMALL = ("--prompts", "2", "--prompt-tokens", "8", "--output-tokens", "8", "--contexts", "8", "--repeats", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a target and a text."""
    monkeypatch.chdir(tmp_path)
    target_folder(tmp_path / "target")
    (tmp_path / "text.txt").write_text("The tree grows by the river. " * 20)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = 0
    try:
        cli.main(list(arguments))
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, *capsys.readouterr()


@pytest.mark.parametrize("drafter", [[], ["--drafter", "target"]])
def test_generate_uses_what_was_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, drafter: list[str]
) -> None:
    """Guards the way of a user with models of their own, with a drafter and without."""
    pair = ["--target", "target", *drafter, "--threads", "1"]
    batches = ["--batches", "1", "2"]
    assert call(capsys, "calibrate", *pair, "--text", "text.txt", "--out", "costs", *SMALL, *batches)[0] == 0
    assert [batch["rows"] for batch in json.loads(Path("costs/batches.json").read_text())["batches"]] == [2]
    asked = ["--method", "dynatree", "--prompt", "The tree", "--max-new-tokens", "12", "--json"]
    _, found, _ = call(capsys, "generate", *pair, *asked, "--calibration", "costs")
    _, plain, _ = call(capsys, "generate", *pair, "--method", "autoregressive", *asked[2:])
    assert json.loads(found)["output_ids"] == json.loads(plain)["output_ids"]
    assert "not calibrated" not in caplog.text


def test_a_quantised_format_says_what_it_costs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against rounded weights whose loss nobody sees; what is not rounded has none to tell."""
    asked = ("calibrate", "--target", "target", "--text", "text.txt", *SMALL, "--threads", "1")
    status, _, err = call(capsys, *asked, "--dtype", "int8", "--out", "costs")
    found = json.loads(Path("costs/perplexity.json").read_text())
    assert status == 0 and {*found} == {"int8", "float32"} and found["int8"] != found["float32"]
    assert 1 < found["int8"]["perplexity"] == pytest.approx(found["float32"]["perplexity"], rel=0.05)
    told = ", ".join(f"{found[dtype]['perplexity']:.3f} in {dtype}" for dtype in ("int8", "float32"))
    assert f"costs: perplexity of the text {told}" in err
    assert call(capsys, *asked, "--out", "exact")[0] == 0 and not Path("exact/perplexity.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "nowhere"], "--text: no file or folder 'nowhere'"),
        (["--text", "text.txt", "--prompts", "0"], "argument --prompts: 0; give at least 1"),
        (["--text", "text.txt", "--prompt-tokens", "9999"], "prompts of 9999 need"),
    ],
)
def test_an_error_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """Guards against measuring for a minute before the mistake is told."""
    status, out, err = call(capsys, "calibrate", "--target", "target", "--out", "costs", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err


def test_sizes_that_would_be_ignored_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a user who asks for batches, and gets costs of single requests without a word."""
    status, out, err = call(capsys, "calibrate", "--target", "target", "--batches", "2", "--repeats", "3")
    assert (status, out) == (2, "") and "calibrate: --batches, --repeats only with --text and --out" in err


def test_prompts_beyond_the_drafters_context_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a rate of nothing, found out behind all the decoding."""
    shutil.copytree("target", "small")
    config = json.loads(Path("small/config.json").read_text())
    Path("small/config.json").write_text(json.dumps(config | {"max_position_embeddings": 4}))
    pair = ["--target", "target", "--drafter", "small", "--threads", "1"]
    status, _, err = call(capsys, "calibrate", *pair, "--text", "text.txt", "--out", "costs", *SMALL)
    assert status == 2 and "prompts of 8 tokens: small has a context of 4; take shorter ones" in err
