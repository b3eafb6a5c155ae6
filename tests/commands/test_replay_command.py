"""`dynatree replay`: the page holds the rounds, recorded or of a prompt, all of them, and loads nothing."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as parquet
import pytest

from dynatree import DynaTree
from dynatree.commands import cli
from dynatree.figures import timeline
from dynatree.figures.shared import animation
from tests.figures import tables as synthetic

PROMPT = "Der Baum am Fluß"
ASKED = ("--target", "target", "--threads", "1", "--dtype", "float64", "--max-new-tokens", "24")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in timeline.TABLES:
        parquet.write_table(synthetic.make(word="</script>")[name], tmp_path / f"{name}.parquet")
    return tmp_path


def lanes_of(page: Path) -> list[dict[str, Any]]:
    text = page.read_text(encoding="utf-8")
    lanes: list[dict[str, Any]] = json.loads(text.partition("const lanes = ")[2].partition(";\n")[0])
    return lanes


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(["replay", *arguments])
    assert left.value.code == 2
    return capsys.readouterr().err


def test_the_page_holds_every_recorded_round(results: Path) -> None:
    """Guards against a lane that misses rounds, a tree that shows no rejection, and times that do not compare."""
    out = results / "replay.html"
    cli.main(["replay", "--results", str(results), "--out", str(out)])
    lanes = lanes_of(out)
    _, passes = timeline.passes(synthetic.make(word="</script>"))
    assert [lane["name"] for lane in lanes] == ["Autoregressive", "Linear chain", "DynaTree"]
    for lane, rounds in zip(lanes, passes.values(), strict=True):
        assert [each["text"] for each in lane["rounds"]] == ["".join(each.texts) for each in rounds]
        assert lane["rounds"][0]["start"] == 0 and lane["prefix"]
        for drawn, each in zip(lane["rounds"], rounds, strict=True):
            assert drawn["end"] - drawn["start"] == pytest.approx(each.end - each.start)
            assert [node["accepted"] for node in drawn["nodes"]].count(False) == len(each.rejected)
            assert len(drawn["own"]) == len(each.texts) - each.accepted


def test_the_page_loads_nothing_and_respects_the_reader(results: Path) -> None:
    """Guards against a network, tokens that close the script, and motion that nobody asked for."""
    out = results / "replay.html"
    cli.main(["replay", "--results", str(results), "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    assert "http" not in text and "src=" not in text and text.count("</script>") == 1
    assert "prefers-reduced-motion" in text and 'type="range"' in text and 'id="play"' in text


@pytest.mark.usefixtures("at_home")
def test_a_prompt_is_decoded_by_each_method(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against lanes of another prompt, text that lacks bytes of a character, and rounds without their times."""
    cli.main(["replay", *ASKED, "--drafter", "target", "--prompt", PROMPT, "--out", "fresh.html"])
    with DynaTree.from_pretrained("target", method="autoregressive", dtype="float64") as plain:
        found = plain.generate(PROMPT, 24)
    lanes = lanes_of(home / "fresh.html")
    assert [lane["name"] for lane in lanes] == ["Autoregressive", "Linear chain", "DynaTree"]
    for lane in lanes:
        rounds = lane["rounds"]
        assert lane["prefix"] + "".join(each["text"] for each in rounds) == found.text
        assert sum(each["tokens"] for each in rounds) == len(found.tokens) - 1
        assert [each["start"] for each in rounds] == [0, *(each["end"] for each in rounds[:-1])]
        assert all(each["end"] > each["start"] for each in rounds)
    assert not any(each["nodes"] for each in lanes[0]["rounds"])
    # A target that drafts for itself: all of a chain is accepted.
    assert all(node["accepted"] for each in lanes[1]["rounds"][:-1] for node in each["nodes"])
    assert PROMPT in (home / "fresh.html").read_text(encoding="utf-8")
    assert "other tokens" not in capsys.readouterr().err


@pytest.mark.usefixtures("at_home")
def test_a_prompt_needs_no_drafter_and_may_be_sampled(home: Path) -> None:
    """Guards against a chain where there is nothing to draft it, and against options that are not heard."""
    cli.main(["replay", *ASKED, "--prompt", PROMPT, "--temperature", "1", "--seed", "3", "--out", "drawn.svg"])
    names = [
        node.text for node in ElementTree.parse(home / "drawn.svg").iter(f"{SVG}text") if node.get("class") == "name"
    ]
    assert names == ["Autoregressive", "DynaTree"]
    cli.main(["replay", *ASKED, "--prompt", PROMPT, "--temperature", "1", "--seed", "3", "--out", "drawn.html"])
    with DynaTree.from_pretrained("target", method="autoregressive", dtype="float64") as plain:
        found = plain.generate(PROMPT, 24, do_sample=True, temperature=1.0, seed=3)
    for lane in lanes_of(home / "drawn.html"):
        assert lane["prefix"] + "".join(each["text"] for each in lane["rounds"]) == found.text


def test_lines_break_between_words() -> None:
    """Guards against words cut at the end of a line, and lines that run into the tree."""
    written = [
        (float(place), word) for place, word in enumerate([" of", " its", " primary"] * 12 + ["x" * 100, " end"])
    ]
    lines: dict[int, str] = {}
    for _, row, column, text in animation._wrapped(written):
        assert len(lines.get(row, "")) <= column
        lines[row] = lines.get(row, "").ljust(column) + text
    assert max(map(len, lines.values())) <= animation.COLUMNS
    assert [line.split()[-1] for line in lines.values()][:2] == ["its", "of"]
    joined = "".join(line if line.endswith("x") else f"{line} " for line in lines.values())
    assert joined.split() == "".join(text for _, text in written).split()


def test_the_picture_shows_every_commit_at_its_moment(results: Path) -> None:
    """Guards against text that is missing or out of order, a tree that never shows, and a picture that runs scripts."""
    out = results / "replay.svg"
    cli.main(["replay", "--results", str(results), "--out", str(out)])
    drawn = ElementTree.parse(out).getroot()
    texts = [node for node in drawn.iter(f"{SVG}text") if node.get("class") == "moving"]
    _, passes = timeline.passes(synthetic.make(word="</script>"))
    shown = "".join(node.text or "" for node in texts).replace(" ", "")
    for rounds in passes.values():
        text = "".join(text for each in rounds for text in each.texts)
        # What lines there are, as a picture shows white space.
        assert text.replace(" ", "").replace("\n", "¶").replace("\t", "→")[:200] in shown
    trees = [node for node in drawn.iter(f"{SVG}g") if "tree" in (node.get("class") or "")]
    assert len(trees) == sum(bool(each.nodes) for rounds in passes.values() for each in rounds)
    style = next(drawn.iter(f"{SVG}style")).text or ""
    moments = [float(found) for found in re.findall(r"@keyframes \w+\{0%\{opacity:0\}([\d.]+)%\{opacity:1\}\}", style)]
    assert moments and max(moments) <= 100 * animation.PLAYED / (animation.PLAYED + animation.HELD) + 0.01
    assert "prefers-reduced-motion" in style and not list(drawn.iter(f"{SVG}script"))


def test_bad_input_is_named_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a traceback where the tables are missing or the page could not be written."""
    assert "end it in .html or .svg" in refused(capsys, "--results", str(tmp_path), "--out", "replay.png")
    said = refused(capsys, "--results", str(tmp_path), "--out", str(tmp_path / "a.html"))
    assert "phases.parquet" in said and "make all" in said
    out = ("--out", str(tmp_path / "a.html"))
    assert "give a --target" in refused(capsys, "--prompt", "a", *out)
    assert "give a --prompt" in refused(capsys, "--target", "target", *out)
    assert "give one" in refused(capsys, "--prompt", "a", "--results", "results", "--target", "target", *out)
    assert "'nobody'" in refused(capsys, "--prompt", "a", "--target", "nobody", *out)
    wrong = refused(capsys, "--prompt", "a", "--target", "target", "--top-k", "3", *out)
    assert "--top-k 3" in wrong and "--temperature" in wrong
