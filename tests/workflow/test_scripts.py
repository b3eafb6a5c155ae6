"""The scripts, each called as its rule calls it, on a tiny model and made-up text: one chain in one folder."""

import fcntl
import hashlib
import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as parquet
import pytest
import torch
import yaml

from dynatree import archive, files
from dynatree.data import model_sources
from dynatree.data.splits import read_tokens
from dynatree.engine import checkpoint, language_model
from dynatree.errors import UserError
from dynatree.measuring import audit, benchmark, llama_cpp
from dynatree.measuring.clock import StepSampler, lock_path
from dynatree.tables import metrics
from tests.figures import tables
from tests.models import wanted
from tests.workflow.world import ROOT

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
RANDOM = {"kind": "random", "architecture": "llama", "configuration": SHAPE}
SCRIPTS = ROOT / "workflow/scripts"
RUN = "results/runs/autoregressive/default/made_up"
METHOD = "--target models/target --decoder autoregressive --prompts prompts.parquet --output-tokens 12"
GENERATE = f"{METHOD} --tokens tokens.parquet --count 2"


def without_torch(script: str, arguments: str, folder: Path) -> None:
    """Run a script where torch and transformers cannot be imported."""
    blocked = folder / "blocked"
    for name in ("torch", "transformers"):
        files.write_text(blocked / f"{name}.py", 'raise ImportError("no such thing here")\n')
    environment = {**os.environ, "PYTHONPATH": f"{blocked}:{ROOT}"}
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def here(script: str, arguments: str) -> None:
    """Run a script in this process and working directory."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments.split(), "--threads", "1"])
        try:
            runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
        finally:
            torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and what the scripts that need none make for it."""
    home = tmp_path_factory.mktemp("scripts")
    model_sources.build(model_sources.parse(RANDOM), home / "models/target", home, seed=0)
    source = json.dumps({"documents": 8, "sentences": 20}, separators=(",", ":"))
    without_torch("download_data", f"--kind synthetic --source {source} --cache . --out documents.parquet", home)
    tokenise = "--documents documents.parquet --model models/target --evaluation-share 0.5 --seed 0"
    without_torch("tokenise", f"{tokenise} --out tokens.parquet", home)
    choose = "--tokens tokens.parquet --dataset made_up --start body --prompts 2 --prompt-tokens 16 --reserve-tokens 12"
    without_torch("choose_prompts", f"{choose} --seed 0 --out prompts.parquet", home)
    return home


@pytest.fixture(autouse=True)
def _here(folder: Path, own_lock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that folder, with a timing lock of our own."""
    monkeypatch.chdir(folder)


def test_text_becomes_tables_without_torch(folder: Path) -> None:
    """Guards against seconds of import in jobs that run no model."""
    here("generate", f"{GENERATE} --out {RUN}")
    here("timeline", f"{METHOD} --out results/timeline/autoregressive/default/made_up")
    here("memory", f"{METHOD} --out results/memory/autoregressive/default/made_up")
    perplexity = "--target models/target --tokens tokens.parquet --dataset made_up --limit 100 --window 16 --stride 8"
    here("perplexity", f"{perplexity} --out results/perplexity/made_up.json")
    model_sources.build(model_sources.parse(RANDOM), Path("models/drafter"), folder, seed=1)
    pair = "--target models/target --drafter models/drafter --tokens tokens.parquet"
    calibrate = f"{pair} --start body --prompts 1 --prompt-tokens 8 --output-tokens 6"
    here("calibrate", f"{calibrate} --contexts 16 --repeats 1 --seed 0 --out results/calibration")
    report = f"{pair} --calibration results/calibration --limit 32 --length 16"
    here("drafter_report", f"{report} --out results/drafter_report.json")
    inputs = f"--results results --runs {RUN} --timeline results/timeline/autoregressive/default/made_up"
    inputs += " --memory results/memory/autoregressive/default/made_up"
    inputs += " --perplexity results/perplexity/made_up.json --costs results/calibration/costs.json"
    inputs += " --drafter results/drafter_report.json"
    without_torch("aggregate", f"{inputs} --model models/target --out results", folder)
    assert [row["method"] for row in parquet.read_table("results/memory.parquet").to_pylist()] == ["autoregressive"]
    rows = parquet.read_table("results/runs.parquet").to_pylist()
    assert [(row["method"], row["output_tokens"], row["flips"]) for row in rows] == [("autoregressive", 12, 0)] * 2
    drafter = parquet.read_table("results/drafter.parquet").to_pylist()
    assert {(row["kind"], row["dataset"], row["part"]) for row in drafter} == {
        ("agreement", "tokens", "text"),
        ("agreement", "tokens", "continuations, first tokens"),
        ("agreement", "tokens", "continuations, later tokens"),
        ("simulated", "tokens", "continuations"),
    }
    reached = json.loads(Path("results/metrics.json").read_text())["autoregressive"]
    assert reached["made_up"]["speedup"] == 1.0


def test_memory_is_measured_in_a_process_of_its_own(folder: Path) -> None:
    """Guards against a peak of whatever else the process did: here it holds no more than one tiny model needs."""
    out = "results/memory/autoregressive/default/made_up"
    command = [sys.executable, str(SCRIPTS / "memory.py"), *f"{METHOD} --out {out} --threads 1".split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = metrics.memory(Path("results"), Path(out))
    assert (row["method"], row["settings"], row["dataset"]) == ("autoregressive", "default", "made_up")
    assert metrics.table("memory", [row]).num_rows == 1
    assert row["weights_mib"] < 1 < row["loaded_mib"] <= row["peak_mib"] < row["loaded_mib"] + 100
    assert files.read_json(Path(out) / files.MEMORY)["machine"]["threads"] == 1


def test_figures_are_drawn_and_runs_pruned_without_torch(folder: Path) -> None:
    """The same for the end of the graph; a run folder that the parameters do not ask for goes."""
    for name, table in tables.make().items():
        Path("tables").mkdir(exist_ok=True)
        parquet.write_table(table, f"tables/{name}.parquet")
    without_torch("draw", "--tables tables --figure datasets --out figures", folder)
    assert Path("figures/datasets.caption.txt").read_text()
    files.write_text("kept/runs/autoregressive/default/wikipedia/outputs.jsonl", "")
    files.write_text("kept/runs/autoregressive/default/elsewhere/outputs.jsonl", "")
    files.write_text("params.yaml", (ROOT / "params.yaml").read_text(encoding="utf-8"))
    without_torch("prune", "--results kept", folder)
    assert [path.name for path in Path("kept/runs/autoregressive/default").iterdir()] == ["wikipedia"]


def test_what_the_lock_names_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a published folder that lacks a record, or that holds one of another run; stages of settings that
    are gone, which DVC keeps in its lock, ask for none. A benchmark of another checkout stays there."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    outs = {}
    left_out = ("figures/b.html", "figures/c.png", "results/library/d.sha256", "models/e/config.json")
    for name in ("results/runs/a/outputs.jsonl", "figures/b.svg", "figures/b.png", *left_out):
        files.write_text(name, name)
        outs[name] = hashlib.md5(name.encode()).hexdigest()
    stage = {"cmd": "true", "outs": [{"path": path, "md5": md5} for path, md5 in outs.items()]}
    gone = {"cmd": "true", "outs": [{"path": "results/runs/gone/outputs.jsonl", "md5": ""}]}
    files.write_text("dvc.lock", json.dumps({"schema": "2.0", "stages": {"gone": gone, "one": stage}}))
    files.write_text("dvc.yaml", json.dumps({"stages": {"one": {"cmd": "true", "outs": list(outs)}}}))
    files.write_text("docs/shown.md", "![A picture](../published/laptop/figures/b.png)")
    files.write_text("published/laptop/results/old.json", "")
    kept = {f"results/benchmark/{name}" for name in ("current.json", "home/machine.json", "home/greedy-d/a.json")}
    kept |= {"results/benchmark.parquet", "figures/benchmark.svg"}
    for name in (*kept, "results/benchmark/older/machine.json"):
        files.write_text(f"before/{name}", '"home"' if name.endswith("current.json") else name)
    archive.pack(Path("published/laptop", archive.RECORDS), {name: Path("before", name) for name in kept})
    without_torch("publish", "--out published", tmp_path)
    published = {path.relative_to("published/laptop").as_posix() for path in Path("published").rglob("*.*")}
    assert published == {archive.RECORDS, "params.yaml", "results/benchmark.parquet", "figures/b.png"}
    archive.unfold(Path("published/laptop"), Path("shown"))
    shown = {path.relative_to("shown").as_posix() for path in Path("shown").rglob("*.*")}
    made = {"params.yaml", "dvc.yaml", "dvc.lock", "results/runs/a/outputs.jsonl", "figures/b.svg", "figures/b.png"}
    assert shown == made | kept
    assert Path("shown/figures/benchmark.svg").read_text() == "figures/benchmark.svg"
    assert yaml.safe_load(Path("shown/dvc.lock").read_text()) == {"schema": "2.0", "stages": {"one": stage}}
    records = Path("published/laptop", archive.RECORDS).read_bytes()
    files.write_text("results/runs/a/outputs.jsonl", "of another run")
    monkeypatch.setattr(sys, "argv", ["publish", "--out", "published"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS / "publish.py"), run_name="__main__")
    assert "results/runs/a/outputs.jsonl: not as dvc.lock names it" in capsys.readouterr().err
    assert Path("published/laptop", archive.RECORDS).read_bytes() == records


def test_a_copy_of_a_worktree_is_no_worktree(tmp_path: Path) -> None:
    """Guards against commits in a sandbox that land in the checkout: a worktree's .git is a file that names it."""
    for name in (".git", ".gitignore", "kept/.git/config", "kept/file"):
        files.write_text(tmp_path / name, "")
    listed = runpy.run_path(str(SCRIPTS / "sandbox.py"))["listed"]
    assert {path.as_posix() for path in listed(tmp_path)} == {".gitignore", "kept/.git/config", "kept/file"}


class Engine:
    """In llama.cpp's place: every request counts up from the prompt's last token."""

    made: ClassVar[list[tuple[Any, ...]]] = []
    asked: ClassVar[list[Any]] = []
    version = "0"

    def __init__(self, *arguments: Any):
        self.made.append(arguments)
        self.model = self
        self.draft_model: Any = None

    def lookup(self, **knobs: int) -> dict[str, int]:
        return knobs

    def reset(self) -> None:
        self.held = False

    def generate(self, prompt: list[int], **options: Any) -> Iterator[int]:
        assert not self.held and options == {"top_k": 1, "temp": 0.0, "repeat_penalty": 1.0}
        self.held = True
        self.asked.append(self.draft_model)
        return itertools.count(prompt[-1])


def test_another_engine_is_timed_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an audit of what other weights give, a tuning that is not taken, and lost records."""

    def given(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"))

    monkeypatch.setattr(model_sources, "gguf_file", lambda source, cache: Path("prompts.parquet"))
    monkeypatch.setattr(llama_cpp, "Engine", Engine)
    methods = {"autoregressive": {"decoder": "autoregressive"}}
    asked = "--target models/target --drafter models/drafter --calibration results/calibration --tokens tokens.parquet"
    asked += f" --start body --prompts 2 --prompt-tokens 16 --output-tokens 12 --methods {given(methods)} --repeats 1"
    asked += f" --tuning-prompts 1 --tuning-output-tokens 4 --seed 0 --grids {{}} --texts {given({'greedy': {}})}"
    asked += f" --source {given(RANDOM)} --cache . --lookup {given({'draft_tokens': [2, 3], 'max_ngram': [4]})}"
    asked += " --decoding tokens.parquet --records results/quantised --out results/quantised.parquet"
    here("benchmark", asked)
    assert Engine.made == [(Path("prompts.parquet"), 28, 1, every) for every in (False, True)]
    lookups = [{"max_ngram_size": 4, "num_pred_tokens": tokens} for tokens in (2, 3)]
    (tuned,) = Path("results/quantised").glob("*/tuned_greedy-*/llama_cpp_lookup.json")
    best = lookups[files.read_json(tuned)["best"]["draft_tokens"] - 2]
    # Each combination warm and timed, the two engines warm, then both on both prompts.
    assert Engine.asked[:4] == [*lookups, *lookups]
    assert [one for one in Engine.asked[4:] if one] == [best] * 3 and Engine.asked.count(None) == 3
    rows = parquet.read_table("results/quantised.parquet").to_pylist()
    engines = ("llama_cpp", "llama_cpp_lookup")
    assert {row["method"] for row in rows} == {"autoregressive", benchmark.AGAIN, *engines}
    told = {(row["text"], row["baseline"], row["prompts"]) for row in rows if row["part"] == "whole"}
    assert told == {("greedy", name, 2) for name in ("autoregressive", benchmark.AGAIN, *engines)}
    assert {row["baseline"] for row in rows if row["part"] != "whole"} == set(engines)
    assert {row["weight_bytes"] for row in rows if row["method"] in engines} == {Path("prompts.parquet").stat().st_size}
    records = {path: path.stat().st_mtime_ns for path in Path("results/quantised").glob("*/greedy-*/*.json")}
    outputs = [row["output_ids"] for path in records for row in files.read_json(path) if row["method"] in engines]
    assert len(outputs) == 4 and all(list(range(ids[0], ids[0] + 12)) == ids for ids in outputs)
    here("benchmark", asked)
    assert {path: path.stat().st_mtime_ns for path in records} == records


def test_the_engine_is_asked_for_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a traceback where it is not installed, a model without its file, and other processors."""
    with pytest.raises(UserError, match="kind 'random' has no GGUF file"):
        model_sources.gguf_file(model_sources.parse(RANDOM), tmp_path)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match="make EXTRAS=dev,bench install"):
        llama_cpp.Engine(tmp_path, 8, 1)
    decoder = llama_cpp.Decoder(Engine())
    assert decoder.decode([3], wanted(5)).output == [3, 4, 5, 6, 7]
    assert decoder.decode([3], wanted(5, 5)).output == [3, 4, 5]
    with pytest.raises(UserError, match="without logits processors"):
        decoder.decode([3], wanted(5, repetition_penalty=1.2))


def test_prompts_are_decoded_together_where_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the option: outputs as one by one, timings of one batch; refused where a decoder has no batches."""
    here("generate", f"{GENERATE} --out single")
    here("generate", f"{GENERATE} --batch 2 --out double")
    assert files.read_jsonl(f"single/{files.OUTPUTS}") == files.read_jsonl(f"double/{files.OUTPUTS}")
    assert [row["batch"] for row in files.read_json(Path("double") / files.TIMINGS)["timings"]] == [2, 2]
    with pytest.raises(SystemExit):
        here("generate", f"{GENERATE.replace('autoregressive', 'transformers')} --batch 2 --out refused")
    assert "batch: 2; transformers decodes one prompt at a time" in capsys.readouterr().err


def test_the_audit_follows_the_last_timing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against work between two timings, and against an audit that slows another job's timing down."""
    happened = []
    step, judge = StepSampler.sample, audit.audit

    def timed(*arguments: Any) -> float:
        happened.append("reference")
        return step(*arguments)

    def judged(*arguments: Any) -> dict[str, Any]:
        with pytest.raises(BlockingIOError), lock_path().open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        happened.append("audit")
        return judge(*arguments)

    monkeypatch.setattr(StepSampler, "sample", timed)
    monkeypatch.setattr(audit, "audit", judged)
    here("generate", f"{GENERATE} --repeats 2 --out ordered")
    assert happened == ["reference"] * 8 + ["audit"] * 4
    outputs, audited = (files.read_jsonl(f"ordered/{name}") for name in (files.OUTPUTS, files.AUDIT))
    keys = [(row["prompt_id"], row["repeat"]) for row in outputs]
    assert keys == [(row["prompt_id"], row["repeat"]) for row in audited]


def test_an_output_that_is_not_exact_leaves_no_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against measurements of a wrong decoder that aggregation would take for good ones."""
    score = language_model.LanguageModel.score
    monkeypatch.setattr(language_model.LanguageModel, "score", lambda self, tokens, last: -score(self, tokens, last))
    with pytest.raises(SystemExit) as ended:
        here("generate", f"{GENERATE} --out wrong")
    assert ended.value.code == 2
    assert "not exact: output token" in capsys.readouterr().err
    assert not list(Path().glob("wrong/*"))


def test_half_precision_is_judged_by_the_tuning_split(folder: Path) -> None:
    """Guards against evaluation prompts that set the tolerance of their own outputs."""
    here("generate", f"{GENERATE} --dtype bfloat16 --out half")
    tuning = [document for document in read_tokens("tokens.parquet") if document.split == "tuning"]
    measured = audit.tolerance(checkpoint.load("models/target", "bfloat16"), tuning)
    assert {row["tolerance"] for row in files.read_jsonl(f"half/{files.AUDIT}")} == {measured}
