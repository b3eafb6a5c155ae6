"""Whatever a user gives, an error is one line with exit status 2, without a traceback, and leaves nothing behind.

Every example runs the command line or a script in this process; `tests/test_cli.py` has the errors of single options.
"""

import os
import runpy
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dynatree import files
from dynatree.commands import cli
from dynatree.commands.arguments import quieten
from dynatree.data import model_sources
from dynatree.data.sources import parquet, text
from dynatree.errors import UserError
from tests.distil.worlds import target_folder
from tests.workflow.world import ROOT

Outcome = tuple[int, str, str]
Call = Callable[..., Outcome]
SMALL = ("--prompts", "1", "--prompt-tokens", "8", "--output-tokens", "8", "--contexts", "8", "--repeats", "1")
RECIPE = ("layers=[0]", "vocabulary=200", "tokens=64", "batch=1", "length=8", "labels=null", "dtype=float32")
DISTIL = tuple(part for change in RECIPE for part in ("--set", change))
FUZZ = settings(suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture])
JUNK = [b"", b"junk", b"null", b"3", b"[]", b'"x"', b"{}", b"\xff\xfe\x00", b'{"a":', b"[1, 99999]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target of context 128 and a text."""
    folder = tmp_path_factory.mktemp("bad")
    target_folder(folder / "target")
    files.write_text(folder / "text.txt", "The tree grows by the river. " * 60)
    return folder


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """A command of `dynatree`, or a script with its path, in that folder: (status, stdout, stderr)."""
    monkeypatch.chdir(home)
    quieten()  # scripts show the progress of loading

    def called(*arguments: str | Path) -> Outcome:
        given, status = [str(argument) for argument in arguments], 0
        capfd.readouterr()
        try:
            if given[0].endswith(".py"):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", given)
                    runpy.run_path(given[0], run_name="__main__")
            else:
                cli.main([*given, "--threads", "1"])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return status, *capfd.readouterr()

    return called


def refused(outcome: Outcome, said: str = "") -> None:
    """One line, status 2, nothing on standard output."""
    status, out, err = outcome
    assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err[-1000:])
    assert err.startswith("error: ") and said in err


def refused_or_good(outcome: Outcome) -> None:
    """Either is right here; a traceback or a half-told error never is."""
    if outcome[0]:
        refused(outcome)


def generate(method: str = "autoregressive", target: Path | str = "target", *more: str) -> list[str | Path]:
    return ["generate", "--target", target, "--method", method, "--max-new-tokens", "4", *more]


def changed(home: Path, name: str, change: Callable[[Path], Any]) -> Path:
    """A copy of the target after `change`."""
    folder = home / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home / "target", folder)
    change(folder)
    return folder


@settings(FUZZ, max_examples=20)
@given(prompt=st.text(max_size=140), method=st.sampled_from(["autoregressive", "linear", "prompt_lookup"]))
@example(prompt="", method="linear")
@example(prompt="x", method="dynatree")
@example(prompt="x" * 124, method="fixed_tree")
@example(prompt="x" * 125, method="fixed_tree")
@example(prompt="x" * 100_000, method="linear")
@example(prompt="\ud800", method="linear")
@example(prompt="a\0b", method="linear")
def test_any_prompt(home: Path, call: Call, prompt: str, method: str) -> None:
    """Guards prompts that are empty, one token, exactly at the context or beyond it, or no text."""
    outcome = call(*generate(method), "--drafter", "target", f"--prompt={prompt}")
    fits = prompt.isprintable() and 0 < len(prompt.encode(errors="replace")) <= 124
    assert outcome[0] == 0 if fits else outcome[0] in (0, 2)
    refused_or_good(outcome)


@settings(FUZZ, max_examples=40)
@given(ids=st.text(alphabet="0123456789 ,-+._x١", max_size=30))
@example(ids="99999999999999999999999")
@example(ids=" ".join(["1"] * 200))
def test_any_token_ids(home: Path, call: Call, ids: str) -> None:
    """Guards ids that are no numbers, outside the vocabulary, larger than 64 bits, or too many."""
    refused_or_good(call(*generate(), f"--prompt-ids={ids}"))


@settings(FUZZ, max_examples=30)
@given(content=st.binary(max_size=300))
def test_any_prompt_file(home: Path, call: Call, content: bytes) -> None:
    """Guards bytes that are no text."""
    (home / "prompt.bin").write_bytes(content)
    refused_or_good(call(*generate(), "--prompt-file", "prompt.bin"))


@settings(FUZZ, max_examples=60)
@given(
    key=st.sampled_from(["depth", "branch", "threshold", "budget"]),
    value=st.one_of(
        st.text(st.characters(exclude_characters="\0"), max_size=12),
        st.sampled_from(
            ["1e400", ".nan", "-.inf", "null", "true", "[1]", "&a [*a]", "!!python/name:os.system", "9" * 30]
        ),
    ),
)
def test_any_value_of_a_parameter(home: Path, call: Call, key: str, value: str) -> None:
    """Guards YAML that is none, of another type, or out of range."""
    # A value that is good meets a target that is not there.
    refused(call("tree", "--target", "nowhere", "--prompt", "x", "--set", f"{key}={value}"))


CONFIGURATIONS = st.dictionaries(
    st.sampled_from(
        [
            "model_type",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "dtype",
            "hidden_act",
            "max_position_embeddings",
            "rope_parameters",
            "eos_token_id",
            "tie_word_embeddings",
        ]
    ),
    st.one_of(
        st.none(), st.integers(-2, 300), st.text(max_size=3), st.lists(st.integers(0, 3), max_size=2), st.just({})
    ),
    min_size=1,
    max_size=3,
)


@settings(FUZZ, max_examples=60)
@given(changes=CONFIGURATIONS)
@example(changes={"num_attention_heads": 0})
@example(changes={"hidden_size": "x"})
@example(changes={"dtype": "float99"})
@example(changes={"model_type": "bert"})
@example(changes={"vocab_size": 100_000})
@example(changes={"hidden_size": 10**12})
def test_any_configuration(home: Path, call: Call, changes: dict[str, Any]) -> None:
    """Guards against every kind of exception that transformers raises for a config.json that does not fit."""

    def change(folder: Path) -> None:
        files.write_json(folder / "config.json", {**files.read_json(folder / "config.json"), **changes})

    outcome = call(*generate(target=changed(home, "configured", change)), "--prompt", "The tree")
    # transformers logs advice about some values; the error is the last line all the same.
    status, out, err = outcome
    assert status in (0, 2) and "Traceback" not in err
    assert status == 0 or (out == "" and err.splitlines()[-1].startswith("error: "))


NAMES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
KEPT = {("tokenizer_config.json", b"{}"), ("generation_config.json", b"{}")}  # nothing is missing


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", JUNK)
def test_a_damaged_file_of_a_model(home: Path, call: Call, name: str, content: bytes) -> None:
    """Guards against a traceback, and against a model that runs without what the file would have said."""
    folder = changed(home, "damaged", lambda folder: (folder / name).write_bytes(content))
    outcome = call(*generate(target=folder), "--prompt", "The tree")
    assert outcome[0] == 0 if (name, content) in KEPT else refused(outcome) is None


@pytest.mark.parametrize("name", ["manifest.json", "draft_vocabulary.json"])
@pytest.mark.parametrize("content", [*JUNK, b"[true, false]", b"[-1]", b"[1, 1]", b"[1.5]"])
def test_a_damaged_file_of_this_project_s_own(
    home: Path, call: Call, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against files beside the weights that are read late, or not at all where they matter."""
    folder = changed(home, "damaged", lambda folder: (folder / name).write_bytes(content))
    options = ("--text", "text.txt", "--out", "costs", *SMALL)
    refused(call("calibrate", "--target", "target", "--drafter", folder, *options), name)
    assert not (home / "costs").exists()


def not_finite(folder: Path) -> None:
    state = load_file(folder / files.WEIGHTS)
    state["model.embed_tokens.weight"][3] = float("nan")
    state["model.norm.weight"][0] = float("nan")
    save_file(state, folder / files.WEIGHTS, metadata={"format": "pt"})


def smaller(folder: Path) -> None:
    """Fewer rows in the embedding than the tokenizer has tokens."""
    state = {
        name: value[:60] if len(value) == 257 else value for name, value in load_file(folder / files.WEIGHTS).items()
    }
    save_file(state, folder / files.WEIGHTS, metadata={"format": "pt"})
    files.write_json(folder / "config.json", {**files.read_json(folder / "config.json"), "vocab_size": 60})


def pickled(folder: Path) -> None:
    (folder / files.WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")


def remote(folder: Path, kind: str) -> None:
    """Code that would be imported if remote code were trusted; it leaves a trace."""
    files.write_text(folder / "other.py", "open('ran', 'w')\nclass C: pass\n")
    if kind == "tokenizer":
        own = {"auto_map": {"AutoTokenizer": ["other.C", None]}, "tokenizer_class": "C"}
        files.write_json(folder / "tokenizer_config.json", own)
    else:
        own = {"auto_map": {"AutoConfig": "other.C", "AutoModelForCausalLM": "other.C"}, "model_type": "another"}
        files.write_json(folder / "config.json", own)


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights that are not finite": (not_finite, "have finite weights"),
    "more tokens than embeddings": (smaller, "has a vocabulary of "),
    "pickled weights": (pickled, "pickled weights are not loaded"),
    "a model's own code": (lambda folder: remote(folder, "model"), "cannot be read"),
    "a tokenizer's own code": (lambda folder: remote(folder, "tokenizer"), "cannot be read"),
    "a header beyond the file": (
        lambda folder: (folder / files.WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"x"),
        "cannot be read",
    ),
    "weights cut short": (lambda folder: os.truncate(folder / files.WEIGHTS, 9000), "cannot be read"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "ends that are no tokens": (
        lambda folder: files.write_json(folder / "generation_config.json", {"eos_token_id": ["x"]}),
        "expected a token id",
    ),
}


@pytest.mark.parametrize("what", FOLDERS)
@pytest.mark.parametrize("role", ["target", "drafter"])
def test_a_folder_that_is_no_model(home: Path, call: Call, what: str, role: str) -> None:
    """Guards what is refused: pickles, foreign code, weights that are damaged, another's or not finite."""
    change, said = FOLDERS[what]
    folder = changed(home, "refused", change)
    if (role, what) == ("drafter", "a tokenizer's own code"):
        # Its tokenizer.json is the target's, so that nothing else of it is read.
        said = None
    given = {"target": "target", "drafter": "target", role: folder}
    outcome = call(*generate("linear", given["target"]), "--drafter", given["drafter"], "--prompt", "The tree")
    if said:
        refused(outcome, said)
    else:
        assert outcome[0] == 0
    assert not list(home.glob("**/ran"))


def test_another_tokenizer_is_no_drafter(home: Path, call: Call) -> None:
    """Guards against token ids that mean another text to the drafter."""

    def change(folder: Path) -> None:
        tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
        files.write_text(folder / "tokenizer.json", tokenizer.replace('"a": ', '"b": ', 1).replace('"b": ', '"a": ', 1))
        values = files.read_json(folder / "tokenizer.json")
        vocabulary = values["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        files.write_json(folder / "tokenizer.json", values)

    folder = changed(home, "foreign", change)
    refused(call(*generate("linear"), "--drafter", folder, "--prompt", "x"), "have different tokenizers")


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t",
    "binary": bytes(range(256)) * 4,
    "zeros": b"a\0b" * 500,
    "latin": b"caf\xe9 " * 200,
    "short": b"x",
    "utf16": ("The tree " * 200).encode("utf-16"),
    "licence alone": b"*** START OF THE PROJECT GUTENBERG EBOOK X ***\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n",
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "calibrate": ("calibrate", "--target", "target", "--out", "made", *SMALL),
    "distil": ("distil", "--target", "target", "--out", "made", *DISTIL),
    "drafter-report": ("drafter-report", "--target", "target", "--drafter", "target", "--tokens", "64"),
}


@pytest.fixture(params=COMMANDS)
def reading(request: pytest.FixtureRequest, call: Call) -> Callable[[Path], Outcome]:
    """A command that reads --text."""
    return lambda path: call(*COMMANDS[request.param], "--text", path)


@pytest.mark.parametrize("what", TEXTS)
def test_text_that_is_none(home: Path, tmp_path: Path, reading: Callable[[Path], Outcome], what: str) -> None:
    """Guards --text of every command: no traceback, and nothing is left of what would have been made."""
    (tmp_path / "a.txt").write_bytes(TEXTS[what])
    refused(reading(tmp_path / "a.txt"))
    refused(reading(tmp_path))
    assert not (home / "made").exists()


def test_folders_without_text(home: Path, tmp_path: Path, reading: Callable[[Path], Outcome]) -> None:
    """Guards folders that are empty or hold other things, links that lead nowhere, and one bad file among good ones."""
    for name in ("empty", "others", "nested", "mixed"):
        (tmp_path / name).mkdir()
    files.write_text(tmp_path / "others/a.md", "The tree")
    (tmp_path / "nested/a.txt").mkdir()
    files.write_text(tmp_path / "mixed/a.txt", "The tree grows. " * 100)
    (tmp_path / "mixed/b.txt").write_bytes(b"\xff")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("gone")
    for name in ("empty", "others", "nested", "mixed", "loop", "dangling", "x" * 400):
        refused(reading(tmp_path / name))
    assert not (home / "made").exists()


def test_lines_of_any_kind_and_length_are_text(home: Path, tmp_path: Path, call: Call) -> None:
    """Guards against refusing a book for its line ends, or one line of a hundred thousand letters."""
    (tmp_path / "a.txt").write_bytes(b"The tree grows.\r\n" * 100 + b"x" * 100_000)
    report = (*COMMANDS["drafter-report"], "--text", tmp_path / "a.txt")
    assert call(*report)[0] == 0


@pytest.mark.parametrize("command", ["calibrate", "distil"])
def test_an_out_that_cannot_be_written_is_told_before_the_work(home: Path, call: Call, command: str) -> None:
    """Guards against measuring or training for nothing."""
    arguments = [part for part in COMMANDS[command] if part not in ("--out", "made")]
    for out in ("text.txt", "text.txt/made", "/dev/null/made"):
        refused(call(*arguments, "--text", "text.txt", "--out", out), f"--out {out}: ")
    refused(call("tree", "--target", "target", "--prompt", "x", "--out", "text.txt/a.svg"), "--out text.txt/a.svg: ")


@settings(FUZZ, max_examples=40)
@given(content=st.binary(max_size=200))
def test_bytes_are_documents_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Guards the sources of a workflow against anything but documents or a UserError."""
    folder = tmp_path_factory.getbasetemp() / "sources"
    folder.mkdir(exist_ok=True)
    for module, suffix in ((text, "txt"), (parquet, "parquet")):
        path = folder / f"a.{suffix}"
        path.write_bytes(content)
        documents_or_error(module, str(path))


def documents_or_error(module: ModuleType, path: str, **keys: str) -> None:
    """Read a source to its end: every document has text, or the error names the file."""
    found, said = [], path
    try:
        found = list(module.documents(module.Parameters(path=path, **keys), Path()))
    except UserError as error:
        said = str(error)
    assert path in said and all(document.text.strip() for document in found)


@settings(FUZZ, max_examples=30)
@given(
    values=st.lists(st.one_of(st.none(), st.text(max_size=20)), max_size=5),
    layout=st.sampled_from(["rows", "wikitext"]),
    damage=st.integers(0, 400),
)
def test_a_damaged_table_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, values: list[str | None], layout: str, damage: int
) -> None:
    """Guards against errors of the Parquet library for a file that was cut or changed, and for rows that are null."""
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    pq.write_table(pa.table({"text": pa.array(values, pa.string())}), path)
    content = bytearray(path.read_bytes())
    for change in (
        lambda: None,
        lambda: content.__setitem__(damage % len(content), 255),
        lambda: content.__delitem__(-1),
    ):
        change()
        path.write_bytes(content)
        documents_or_error(parquet, str(path), layout=layout)


@pytest.mark.parametrize("content", JUNK)
@pytest.mark.parametrize("place", ["given", "beside the models"])
def test_a_damaged_calibration(
    home: Path, call: Call, caplog: pytest.LogCaptureFixture, content: bytes, place: str
) -> None:
    """Guards against costs that are none: an error where they are named, a warning where they were only found."""
    shutil.copytree(home / "target", home / "models/target", dirs_exist_ok=True)
    found = home / "results/calibration/float32"
    for name in ("costs.json", "steps.json", "batches.json"):
        files.write_text(found / name, "")
        (found / name).write_bytes(content)
    given = ("--calibration", "results/calibration/float32") if place == "given" else ()
    outcome = call(*generate("dynatree", "models/target"), "--prompt", "The tree", *given)
    shutil.rmtree(home / "results")
    if place == "given":
        refused(outcome)
    else:
        assert outcome[0] == 0
        # An object without measurements is of no model, so that nothing was found beside these.
        assert content == b"{}" or f"{found / 'costs.json'} cannot be read" in caplog.text


@pytest.mark.parametrize("content", JUNK)
@pytest.mark.parametrize("name", ["record.json", "draft_vocabulary.json", "layers.safetensors"])
def test_a_damaged_part(home: Path, call: Call, tmp_path: Path, name: str, content: bytes) -> None:
    """Guards `distil --part` and the rule that uses it."""
    if not (home / "whole").exists():
        assert call("distil", "--target", "target", "--text", "text.txt", "--out", "drafter", *DISTIL)[0] == 0
        (part,) = (home / "drafter.work").glob("*/part")
        shutil.copytree(part, home / "whole")
    shutil.copytree(home / "whole", tmp_path / "part")
    (tmp_path / "part" / name).write_bytes(content)
    refused(call("distil", "--target", "target", "--part", tmp_path / "part", "--out", "completed"))
    assert not (home / "completed").exists()


SCRIPTS = ROOT / "workflow/scripts"
METHOD = ("--target", "target", "--decoder", "autoregressive", "--output-tokens", "4", "--threads", "1")
GENERATE = (SCRIPTS / "generate.py", *METHOD, "--count", "1", "--out", "run")


@pytest.mark.parametrize("table", [*JUNK, None])
def test_scripts_with_tables_that_are_none(home: Path, call: Call, tmp_path: Path, table: bytes | None) -> None:
    """Guards scripts that are called by hand, and jobs whose inputs were damaged."""
    path = tmp_path / "table.parquet"
    if table is not None:
        path.write_bytes(table)
    own = ("--tokens", path, "--out", tmp_path / "out")
    refused(call(*GENERATE, "--prompts", path, "--tokens", path))
    sizes = ("--prompts", "1", "--prompt-tokens", "8", "--output-tokens", "8", "--contexts", "8", "--repeats", "1")
    refused(call(SCRIPTS / "calibrate.py", "--target", "target", "--start", "body", *sizes, "--seed", "0", *own))
    refused(call(SCRIPTS / "distil.py", "--target", "target", "--source", "{}", "--work", "w", "--seed", "0", *own))
    pair = ("--target", "target", "--drafter", "target", "--limit", "64", "--length", "16", "--calibration", "costs")
    refused(call(SCRIPTS / "drafter_report.py", *pair, *own))
    assert not (home / "run").exists() and not (tmp_path / "out").exists() and not (home / "w").exists()


@pytest.mark.parametrize("value", ["", "junk", "[]", "3", '{"kind": "magic"}', '{"x": 1}', "{"])
def test_scripts_with_json_that_is_none(home: Path, call: Call, tmp_path: Path, value: str) -> None:
    """Guards the options that take an object."""
    prompts = {"prompt_id": ["a"], "document_id": ["a"], "dataset": ["d"], "title": [""], "split": ["evaluation"]}
    pq.write_table(pa.table({**prompts, "origin": [""], "first_token": [0], "ids": [[1, 2]]}), tmp_path / "p.parquet")
    tables = ("--prompts", tmp_path / "p.parquet", "--tokens", tmp_path / "p.parquet")
    refused(call(*GENERATE, *tables, "--knobs", value))
    refused(call(*GENERATE, *tables, "--options", value))
    model = ("--cache", tmp_path, "--out", tmp_path / "made")
    refused(call(SCRIPTS / "download_model.py", "--source", value, *model))
    refused(call(SCRIPTS / "download_data.py", "--kind", "text", "--source", value, *model))
    assert not (tmp_path / "made").exists() and not (home / "run").exists()


def test_random_weights_of_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    """Guards params.yaml's `configuration` against a traceback of transformers."""
    values = {"kind": "random", "architecture": "llama", "configuration": {"hidden_size": "x"}}
    with pytest.raises(UserError, match="architecture 'llama'"):
        model_sources.build(model_sources.parse(values), tmp_path / "made", tmp_path, 0)
