"""The contract of `dynatree generate`: what it prints, and that every error is one line on standard error."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dynatree
from dynatree import decoding, files
from dynatree.api.streaming import Piece
from dynatree.commands import cli, generate
from dynatree.costs.calibration import Calibration
from dynatree.data import model_sources
from dynatree.distil.student import shrink
from dynatree.engine import checkpoint
from dynatree.generation.ending import Ending
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, Recorder, Round, Trace
from dynatree.measuring import runs
from dynatree.study import params
from tests import models

PROMPT = "The tree"
KEYS = {
    *("method", "parameters", "prompt_ids", "output_ids", "text", "seconds", "ttft_seconds", "rounds"),
    *("target_forwards", "draft_forwards", "drafted", "accepted"),
}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
Result = tuple[int, str, str]
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders: target, drafter (the target's first layers), mute (no tokenizer), foreign (other vocabulary)."""
    home = tmp_path_factory.mktemp("cli")
    source = model_sources.parse({"kind": "random", "architecture": "llama", "configuration": SHAPE})
    model_sources.build(source, home / "target", home, seed=0)
    target = checkpoint.load(home / "target")
    model_sources.save(shrink(checkpoint.read(home / "target"), [0, 1], 1.0), target.tokenizer, home / "drafter", {})
    shutil.copytree(home / "target", home / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    models.random_model(dtype=torch.float32).save_pretrained(home / "foreign")
    files.write_text(home / "prompt.txt", PROMPT)
    return home


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command in this process, in the folder of the models: (exit status, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DYNATREE_MODELS", raising=False)
    monkeypatch.setattr(
        cli, "__file__", str(folder / "dynatree" / "commands" / "cli.py")
    )  # hides the checkout's models
    threads = torch.get_num_threads()

    def call(*arguments: str) -> Result:
        status = 0
        capsys.readouterr()
        try:
            cli.main(["generate", *arguments])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return status, *capsys.readouterr()

    yield call
    torch.set_num_threads(threads)


def options(method: str = "autoregressive", **changes: str | None) -> list[str]:
    """A good command line of `method` with some options changed, or left out where they are None."""
    given: dict[str, str | None] = {
        "target": "target",
        "drafter": "drafter",
        "method": method,
        "prompt": PROMPT,
        "max-new-tokens": "20",
        "dtype": "float64",
        "threads": "1",
    }
    given |= {key.replace("_", "-"): value for key, value in changes.items()}
    return [part for key, value in given.items() if value is not None for part in (f"--{key}", value)]


def as_json(result: Result) -> Any:
    status, out, _ = result
    assert status == 0
    assert out.count("\n") == 1
    return json.loads(out)


def test_a_seed_gives_the_same_text_by_every_method_of_ours(run: Run) -> None:
    """Guards the options of sampling, from the words of the command to the draws."""
    drawn = ["--json", "--temperature", "0.9", "--top-p", "0.99", "--seed"]
    plain, other = (as_json(run(*options(), *drawn, seed))["output_ids"] for seed in ("3", "4"))
    assert plain != other
    for method in ("dynatree", "linear", "fixed_tree", "dynatree_threshold"):
        assert as_json(run(*options(method), *drawn, "3"))["output_ids"] == plain
    for method in ("transformers", "assisted"):
        assert len(as_json(run(*options(method), *drawn, "3"))["output_ids"]) == len(plain)


@pytest.mark.parametrize("method", list(params.read().methods))
def test_json_is_one_object_and_equal_for_every_method(run: Run, method: str) -> None:
    """Guards the contract for programs, and exactness as users see it."""
    result = as_json(run(*options(method), "--json"))
    plain = as_json(run(*options(), "--json"))
    assert set(result) == KEYS
    assert result["output_ids"] == plain["output_ids"]
    assert len(result["output_ids"]) == 20
    assert result["text"] == plain["text"]
    assert result["method"] == method
    assert result["prompt_ids"] == checkpoint.load(Path("target")).tokenizer.encode(PROMPT)
    assert 0 < result["ttft_seconds"] <= result["seconds"]
    assert 0 <= result["accepted"] <= result["drafted"]
    assert result["target_forwards"] == result["rounds"] or method == "transformers"


def test_output_is_that_of_transformers(run: Run) -> None:
    """Guards against a method that agrees with ours alone."""
    target = checkpoint.load(Path("target"), "float64")
    result = as_json(run(*options("dynatree"), "--json"))
    assert result["output_ids"] == models.generated(target, result["prompt_ids"], 20)
    assert result["text"] == target.tokenizer.decode(result["output_ids"])


def test_set_changes_a_parameter(run: Run) -> None:
    """Guards against overrides that are shown but not used, or that stay text."""
    result = as_json(run(*options("dynatree"), "--json", "--set", "depth=1", "--set", "threshold=null"))
    assert result["parameters"]["depth"] == 1
    assert result["parameters"]["threshold"] is None
    assert result["parameters"]["branch"] == params.read().methods["dynatree"].knobs["branch"]
    assert result["accepted"] <= result["rounds"]
    assert as_json(run(*options("dynatree"), "--json", "--set", "depth=0"))["drafted"] == 0


def test_what_was_measured_beside_the_models_is_used(
    run: Run, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against trees grown by a table of another pair, and against a table that nobody looks for."""
    plain = as_json(run(*options(), "--json"))
    home = tmp_path / "models"
    shutil.copytree(folder, home)
    named = options("dynatree", target=str(home / "target"), drafter=str(home / "drafter"))
    for other, said in ((False, "measured with processor"), (True, "not calibrated")):
        fingerprints = {role: checkpoint.fingerprint(home / role) for role in ("target", "drafter")}
        costs, steps = models.calibration()
        costs = costs.model_copy(update={"models": {**fingerprints, **({"drafter": "another"} if other else {})}})
        Calibration(costs, steps).write(tmp_path / "results" / "calibration" / "float64")
        result = run(*named, "--json")
        assert as_json(result)["output_ids"] == plain["output_ids"]
        assert said in caplog.text
        caplog.clear()
    status, _, err = run(*named, "--calibration", str(tmp_path / "results" / "calibration" / "float64"))
    assert status == 2 and "measured with drafter another" in err


def test_prompt_sources_are_alike(run: Run) -> None:
    """Guards against a file that loses its text, or ids that are read otherwise."""
    wanted = as_json(run(*options(), "--json"))
    from_file = as_json(run(*options(prompt=None, prompt_file="prompt.txt"), "--json"))
    ids = " ".join(str(token) for token in wanted["prompt_ids"])
    from_ids = as_json(run(*options(prompt=None, prompt_ids=ids), "--json"))
    with_commas = as_json(run(*options(prompt=None, prompt_ids=ids.replace(" ", ", ")), "--json"))
    for other in (from_file, from_ids, with_commas):
        assert other["output_ids"] == wanted["output_ids"]


@pytest.mark.parametrize("method", ["dynatree", "prompt_lookup"])
def test_several_prompts_give_what_each_gives_alone(run: Run, method: str) -> None:
    """Guards against prompts that are lost, mixed up or refused where a method decodes one at a time."""
    texts, more = [PROMPT, "A river runs"], ["--prompt", "A river runs"]
    alone = [as_json(run(*options(method, prompt=text), "--json"))["output_ids"] for text in texts]
    several = as_json(run(*options(method), *more, "--json"))
    assert [result["output_ids"] for result in several] == alone
    status, out, err = run(*options(method), *more)
    assert status == 0 and err.count("target forwards") == 2
    assert out == "".join(
        f"== prompt {number} of 2 ==\n{result['text']}\n" for number, result in enumerate(several, start=1)
    )


def test_several_files_and_several_lists_of_ids(run: Run) -> None:
    """Guards the other two ways to name prompts."""
    one = as_json(run(*options(prompt=None, prompt_ids="5 9 3"), "--json"))["output_ids"]
    ids = as_json(run(*options(target="mute", prompt=None, prompt_ids="5 9 3"), "--prompt-ids", "5,9,3", "--json"))
    assert [result["output_ids"] for result in ids] == [one, one]
    named = options(prompt=None, prompt_file="prompt.txt")
    files_ = as_json(run(*named, "--prompt-file", "prompt.txt", "--json"))
    assert [result["output_ids"] for result in files_] == [as_json(run(*options(), "--json"))["output_ids"]] * 2


def test_a_model_without_tokenizer_reads_and_writes_ids(run: Run) -> None:
    """Guards against needing a tokenizer where none is used."""
    result = as_json(run(*options(target="mute", prompt=None, prompt_ids="5 9 3"), "--json"))
    assert result["text"] is None
    assert result["prompt_ids"] == [5, 9, 3]
    _, out, _ = run(*options(target="mute", prompt=None, prompt_ids="5 9 3"))
    assert [int(part) for part in out.split()] == result["output_ids"]


def test_end_of_sequence_ends_the_output_unless_ignored(run: Run, folder: Path, tmp_path: Path) -> None:
    """Guards both readings of the model's own end token."""
    plain = as_json(run(*options("dynatree"), "--json"))["output_ids"]
    ending = tmp_path / "ending"
    shutil.copytree(folder / "target", ending)
    end = plain[7]
    files.write_json(ending / "generation_config.json", {"eos_token_id": end})
    ended = as_json(run(*options("dynatree", target=str(ending)), "--json"))["output_ids"]
    assert ended == plain[: plain.index(end) + 1]
    ignored = as_json(run(*options("dynatree", target=str(ending)), "--json", "--ignore-eos"))["output_ids"]
    assert ignored == plain


@pytest.mark.parametrize("method", ["autoregressive", "dynatree", "assisted"])
def test_streaming_prints_the_whole_text(run: Run, method: str) -> None:
    """Guards against characters that are lost, doubled, or still waiting at the end; a summary goes to stderr."""
    text = as_json(run(*options(method), "--json"))["text"]
    status, out, err = run(*options(method))
    assert (status, out) == (0, f"{text}\n")
    assert err.startswith("20 tokens in ")
    assert err.count("\n") == 1


class Speaker:
    """A decoder that commits what it was given, whatever the prompt."""

    def __init__(self, commits: list[list[int]]):
        self._commits = commits

    def decode(
        self,
        ids: list[int],
        options: GenerationOptions,
        on_commit: Any = None,
        clock: Clock | None = None,
    ) -> Trace:
        recorder = Recorder(Ending(ids, options), on_commit, clock or Clock())
        recorder.first(self._commits[0])
        for tokens in self._commits[1:]:
            recorder.round(Round(len(tokens), len(tokens), len(tokens) - 1, tokens))
        return recorder.close(len(self._commits), 0)


MANY_BYTES = "Bäume, 木, 🌳"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_streaming_characters_of_several_tokens(run: Run, monkeypatch: pytest.MonkeyPatch, size: int, cut: int) -> None:
    """Guards against replacement characters in the middle, and against losing a character that the limit cut."""
    tokenizer = model_sources.byte_tokenizer()
    ids = tokenizer.encode(MANY_BYTES)[: len(MANY_BYTES.encode()) - cut]
    commits = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
    monkeypatch.setattr(decoding, "build", lambda *_: Speaker(commits))
    monkeypatch.setattr(runs, "warm_up", lambda *_: None)
    status, out, _ = run(*options())
    assert (status, out) == (0, tokenizer.decode(ids) + "\n")
    assert out.count("\ufffd") == (1 if cut else 0)


def test_accepted_tokens_are_green_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against colours in a pipe, or where NO_COLOR forbids them, or on the target's own tokens."""
    shown = []
    for terminal, forbidden in ((True, False), (True, True), (False, False)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        (monkeypatch.setenv if forbidden else monkeypatch.delenv)("NO_COLOR", *(["1"] if forbidden else [False]))
        generate.show([Piece("a"), Piece("b", drafted=True), Piece("c")])
        shown.append(capsys.readouterr().out)
    assert shown == ["a\x1b[32mb\x1b[0mc\n", "abc\n", "abc\n"]


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"method": "linear", "drafter": None}, [], "--drafter: method linear needs one"),
        ({"method": "magic"}, [], "--method: no 'magic'; choose one of autoregressive, "),
        ({"target": "gpt5"}, [], "model: 'gpt5' is neither a folder nor a model of params.yaml (smollm2, "),
        ({"target": "pythia-2.8b"}, [], "model 'pythia-2.8b' is not built yet: run "),
        ({"drafter": "pythia-2.8b-drafter"}, [], "model 'pythia-2.8b-drafter' is not built yet: run "),
        ({"drafter": "foreign"}, [], "drafter foreign has a vocabulary of 61, target target one of 257"),
        ({"target": "mute", "drafter": "drafter"}, [], "model 'mute' has no tokenizer; give --prompt-ids"),
        ({"target": "."}, [], "has no config.json"),
        ({"prompt_ids": "1"}, [], "argument --prompt-ids: not allowed with argument --prompt"),
        ({"prompt": None}, [], "one of the arguments --prompt --prompt-file --prompt-ids is required"),
        ({"prompt": None, "prompt_ids": "1 300"}, [], "token id 300 is outside target's vocabulary 0..256"),
        ({"prompt": None, "prompt_ids": "-1"}, [], "token id -1 is outside target's vocabulary 0..256"),
        ({"prompt": None, "prompt_ids": "one"}, [], "--prompt-ids 'one': write token ids, such as '1 2 3'"),
        ({"prompt": None, "prompt_ids": ""}, [], "prompt: it is empty; give at least one token"),
        ({"prompt": ""}, [], "prompt: it is empty; give at least one token"),
        ({"prompt": "\udcff"}, [], "--prompt: it is not UTF-8 text"),
        ({"prompt": None, "prompt_file": "none.txt"}, [], "--prompt-file none.txt: "),
        ({"prompt": None, "prompt_file": "target"}, [], "--prompt-file target: "),
        ({"prompt": None, "prompt_file": "target/model.safetensors"}, [], "--prompt-file target/model.safetensors: "),
        ({"max_new_tokens": "0"}, [], "--max-new-tokens: 0; give at least 1"),
        ({"max_new_tokens": "abc"}, [], "argument --max-new-tokens: abc; give at least 1"),
        ({"max_new_tokens": "1000"}, [], "exceed target's context of 128"),
        ({"max_new_tokens": None}, ["--max-new-tokens"], "argument --max-new-tokens: expected one argument"),
        ({"threads": "0"}, [], "--threads: 0; give at least 1"),
        ({"dtype": "int3"}, [], "dtype: no 'int3'; choose one of float32, "),
        ({"device": "tpu"}, [], "device: no 'tpu'; choose one of cpu, cuda"),
        ({}, ["--set", "width=3"], "--set width=3: write KEY=VALUE with a key of this method: depth, branch"),
        ({}, ["--set", "policy=chain"], "--set policy=chain: write KEY=VALUE with a key of this method"),
        ({}, ["--set", "depth"], "--set depth: write KEY=VALUE with a key of this method"),
        ({}, ["--set", "depth=deep"], "dynatree: depth: "),
        ({}, ["--set", "depth=-1"], "dynatree: depth: "),
        ({}, ["--set", "depth=[1"], "--set depth=[1: '[1' is no value"),
        ({"method": "autoregressive"}, ["--set", "depth=1"], "a key of this method: it has none"),
        ({}, ["--repetition-penalty", "0"], "--repetition-penalty: Input should be greater than 0"),
        ({}, ["--no-repeat-ngram-size", "-1"], "--no-repeat-ngram-size: Input should be greater than or"),
        ({}, ["--calibration", "nowhere"], "calibration nowhere: "),
        ({}, ["--temperature", "-1"], "--temperature: Input should be greater than or equal to 0 (got -1.0)"),
        ({}, ["--temperature", "1", "--top-p", "2"], "--top-p: Input should be less than or equal to 1 (got 2.0)"),
        ({}, ["--top-k", "5"], "--top-k 5: it is for sampling; give a --temperature above 0, too"),
        ({}, ["--seed", "5"], "--seed 5: it is for sampling; give a --temperature above 0, too"),
        ({}, ["--temperature", "1", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
    ],
)
def test_an_error_is_one_line(run: Run, changes: dict[str, str | None], more: list[str], said: str) -> None:
    """Guards against tracebacks, usage screens, and output beside an error that a program would read."""
    status, out, err = run(*options(**{"method": "dynatree", **changes}), *more)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_cuda_without_a_gpu_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against decoding on the processor in silence."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = run(*options(device="cuda"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "this torch sees no GPU; choose cpu" in err


@pytest.mark.parametrize("arguments", [[], ["decode"], ["report"], ["generate"]])
def test_a_command_line_without_its_parts_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Guards the errors of the command and of both its parts."""
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert (leaving.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["report", "--help"], ["--version"]])
def test_help_goes_to_stdout(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Guards against help that fails or that stderr swallows."""
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert (leaving.value.code, err) == (0, "")
    assert out.startswith("0." if arguments == ["--version"] else "usage: dynatree")


def test_report_prints_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the reference of the tables."""
    cli.main(["report", "--schema"])
    assert "| `acceptance_rate` | double |" in capsys.readouterr().out


def test_a_built_model_is_found_by_name(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the names of params.yaml: in models/ of the working directory, and where DYNATREE_MODELS says."""
    wanted = as_json(run(*options(), "--json"))["output_ids"]
    shutil.copytree(folder / "target", tmp_path / "models" / "pythia-2.8b")
    monkeypatch.setenv("DYNATREE_MODELS", str(tmp_path / "models"))
    assert as_json(run(*options(target="pythia-2.8b"), "--json"))["output_ids"] == wanted
    monkeypatch.delenv("DYNATREE_MODELS")
    monkeypatch.chdir(tmp_path)
    found = run(*options(target="pythia-2.8b", drafter=None), "--json")
    assert as_json(found)["output_ids"] == wanted


def test_the_command_works_from_another_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    """Guards the real command: nothing but JSON on stdout, a note at most on stderr, exit statuses."""
    command = [sys.executable, "-m", "dynatree.commands.cli", "generate"]
    root = str(Path(dynatree.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    good = options("dynatree", target=str(folder / "target"), drafter=str(folder / "drafter"))
    done = subprocess.run([*command, *good, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("not calibrated: what these models' forwards cost here in float64 is not known")
    assert json.loads(done.stdout)["output_ids"] == as_json(run(*options(), "--json"))["output_ids"]
    failed = subprocess.run([*command, "--target", "x"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)


def test_without_openvino_torch_decodes_and_few_bits_are_refused(folder: Path) -> None:
    """Guards against a library that nobody can use where OpenVINO has no wheel, for formats that nobody asked for."""
    code = "import sys; sys.modules['openvino'] = None; from dynatree.commands.cli import main; main()"
    asked = ["generate", "--target", "target", "--drafter", "drafter", "--prompt", PROMPT, "--max-new-tokens", "4"]

    def without(*given: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *asked, *given]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    done = without("--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["output_ids"]) == 4
    refused = without("--dtype", "int8")
    assert refused.returncode == 2
    assert "dtype: int8 needs OpenVINO" in refused.stderr.splitlines()[-1]
