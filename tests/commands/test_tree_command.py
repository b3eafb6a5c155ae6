"""`dynatree tree`: what it prints and draws is the round that the decoder recorded."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dynatree.commands import cli
from dynatree.figures.shared import theme
from dynatree.measuring import loading
from dynatree.study import params
from dynatree.tree import TokenTree
from tests import models
from tests.distil.worlds import target_folder

PROMPT = [5, 9, 3, 20]
PAIR = ("--target", "target", "--drafter", "target", "--threads", "1", "--dtype", "float64")
ASKED = (*PAIR, "--method", "fixed_tree", "--set", "branch=2", "--prompt-ids", " ".join(map(str, PROMPT)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target, which drafts for itself: its first choices are always accepted."""
    folder = tmp_path_factory.mktemp("tree")
    target_folder(folder / "target")
    return folder


@pytest.fixture(autouse=True)
def _here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status, threads = 0, torch.get_num_threads()
    try:
        cli.main(["tree", *arguments])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    finally:
        torch.set_num_threads(threads)
    return status, *capsys.readouterr()


def recorded(number: int) -> tuple[TokenTree, Any, int]:
    """The same round by the library: its tree, its record, and how many tokens stand before its root."""
    knobs = params.read().methods["fixed_tree"].knobs | {"branch": 2}
    folders = {"target": Path("target"), "drafter": Path("target")}
    (target, _), decoder = loading.load(folders, None, "speculative", knobs, "float64", "cpu")
    trace = decoder.decode(PROMPT, models.wanted(64, *target.eos_ids))
    chosen = trace.rounds[number]
    tree = TokenTree.root(chosen.tree["tokens"][0])
    for token, parent, value in list(zip(*(chosen.tree[k] for k in ("tokens", "parents", "log_probs")), strict=True))[
        1:
    ]:
        tree = tree.extend([parent], [token], [value])
    before = len(PROMPT) + trace.first + sum(len(r.emitted) for r in trace.rounds[:number]) - 1
    return tree, chosen, before


@pytest.mark.parametrize("number", [0, 2])
def test_text_is_the_recorded_round(capsys: pytest.CaptureFixture[str], number: int) -> None:
    """Guards against a mask, position or probability of another node, and against a path marked wrongly."""
    status, out, err = call(capsys, *ASKED, "--round", str(number))
    tree, chosen, before = recorded(number)
    assert status == 0
    assert f"after {before} tokens: one target forward verifies {len(tree) - 1} nodes" in out
    lines = re.findall(r"^ +(\d+) ([ *]) +(\d+)  (.{4})  (.{4})  ", out, re.M)
    masks = re.findall(r"^ +\d+       # ([#. ]+)$", out, re.M)
    assert len(lines) == len(masks) == len(tree) > 4
    # Depth first, siblings by probability; two random nodes never have the same.
    order, children = [], [[n for n in range(len(tree)) if tree.parents[n] == p] for p in range(len(tree))]
    waiting = [0]
    while waiting:
        order.append(waiting.pop())
        waiting += sorted(children[order[-1]], key=lambda n: float(tree.log_probs[n]))
    assert [int(line[0]) for line in lines] == list(range(len(tree)))
    assert [int(line[2]) for line in lines] == tree.positions(before)[order].tolist()
    assert {order[i] for i, line in enumerate(lines) if line[1] == "*"} == set(chosen.path)
    for node, (_, _, _, step, path) in zip(order[1:], lines[1:], strict=True):
        assert path == f"{math.exp(tree.log_probs[node]):.2f}"
        assert step == f"{math.exp(tree.log_probs[node] - tree.log_probs[tree.parents[node]]):.2f}"
    shown = torch.tensor([[cell == "#" for cell in mask.split()] for mask in masks])
    assert torch.equal(shown, tree.attention_mask(0)[order][:, order])
    assert f"{chosen.drafted}/{chosen.accepted}" in err


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_out_draws_one_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    """Guards against a drawing of another format, or left-overs beside it."""
    out = tmp_path / "drawn" / f"tree.{suffix}"
    status, _, err = call(capsys, *ASKED, "--out", str(out))
    assert status == 0 and str(out) in err
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    content = out.read_bytes()
    assert content.startswith({"svg": b"<svg", "png": b"\x89PNG", "html": b"<!DOCTYPE html"}[suffix])
    if suffix == "svg":
        assert theme.colour("fixed_tree").encode() in content and b"round 0" in content


def test_a_long_chain_is_no_wider_than_its_depth(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against lines of hundreds of columns for the chains that lookup finds."""
    options = ("--method", "linear", "--set", "draft_tokens=40", "--prompt-ids", "1 2 3")
    status, out, _ = call(capsys, *PAIR, *options)
    tree = out.split("\n\n")[1].splitlines()
    assert status == 0 and len(tree) == 42 and max(map(len, tree)) < 80


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--method", "autoregressive"], "--method: 'autoregressive' grows no tree; choose one of linear, fixed_tree"),
        (["--method", "magic"], "--method: 'magic' grows no tree; choose one of"),
        (["--round", "-1"], "--round: -1; rounds are counted from 0"),
        (["--round", "64"], "--round: no 64; this output of 64 tokens has "),
        (["--max-new-tokens", "0"], "argument --max-new-tokens: 0; give at least 1"),
        (["--max-new-tokens", "1"], "this output of 1 token has 0 rounds"),
        (["--out", "tree.pdf"], "--out tree.pdf: end it in one of .svg, .html, .png"),
        (["--target", "nowhere"], "model: 'nowhere' is neither a folder nor a model of params.yaml"),
        (["--set", "depth=-1"], "fixed_tree: depth: "),
        (["--prompt", "x"], "argument --prompt: not allowed with argument --prompt-ids"),
    ],
)
def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], changes: list[str], said: str) -> None:
    """Guards against tracebacks, and against a decoding before the mistake is told."""
    status, out, err = call(capsys, *ASKED, *changes)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and said in err


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a help that lists options alone."""
    status, out, _ = call(capsys, "--help")
    assert status == 0 and out.count("  dynatree tree --target") == 3 and "siblings share one" in out
