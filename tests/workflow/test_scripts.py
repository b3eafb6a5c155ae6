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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as parquet
import pytest
import torch
import yaml

from dynatree import archive, files
from dynatree.costs.cost_table import Curve
from dynatree.data import model_sources
from dynatree.data.splits import EVALUATION, read_tokens, write_tokens
from dynatree.engine import checkpoint, language_model
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import audit, benchmark, draft_gguf, llama_cpp
from dynatree.measuring.clock import StepSampler, lock_path
from dynatree.tables import metrics
from tests.figures import tables
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


def test_earlier_benchmarks_and_old_stamps_are_pruned(folder: Path) -> None:
    """Guards against records of the current benchmark that go, a dry run that removes, and folders that only grow."""
    homes = ("benchmark/int4/now", "benchmark/int4/before", "benchmark/int8/gone", "llama_cpp/now", "llama_cpp/before")
    for name in (*homes, "unknown/home"):
        files.write_json(Path("pruned", name, "machine.json"), {})
    for name in ("benchmark/int4", "benchmark/int8", "llama_cpp"):  # one of a format that is no longer asked for
        files.write_json(Path("pruned", name, files.CURRENT), "gone" if name.endswith("int8") else "now")
    stamps = [Path(".cache", name) for name in ("code/old", "code/new", "checked/old", "checked/new", "downloads/old")]
    for stamp in stamps:
        files.write_json(stamp, {})
        if stamp.name == "old":
            os.utime(stamp, (0, 0))
    files.write_text("params.yaml", (ROOT / "params.yaml").read_text(encoding="utf-8"))
    without_torch("prune", "--results pruned --dry-run", folder)
    assert Path("pruned/benchmark/int4/before").is_dir() and all(stamp.is_file() for stamp in stamps)
    without_torch("prune", "--results pruned", folder)
    left = {path.relative_to("pruned").as_posix() for path in Path("pruned").rglob("*.json")}
    kept = ("benchmark/int4", "llama_cpp")
    assert left == {f"{name}/{file}" for name in kept for file in ("now/machine.json", files.CURRENT)} | {
        "unknown/home/machine.json"
    }
    assert [stamp.name for stamp in stamps if stamp.is_file()] == ["new", "new", "old"]


def test_the_benchmark_s_formats_are_put_into_one_table(folder: Path) -> None:
    """Guards against rows whose format nobody knows, and ratios of one format that another's take the place of."""
    of_one = tables.make()["benchmark"]
    for dtype in ("int4", "float32"):
        Path("formats", dtype).mkdir(parents=True)
        parquet.write_table(of_one, f"formats/{dtype}/benchmark.parquet")
    formats = "formats/int4/benchmark.parquet formats/float32/benchmark.parquet"
    without_torch("benchmark_table", f"--formats {formats} --out benchmark.parquet", folder)
    found = parquet.read_table("benchmark.parquet")
    assert found["dtype"].to_pylist() == ["int4"] * len(of_one) + ["float32"] * len(of_one)
    assert found.drop_columns("dtype").slice(len(of_one)).equals(of_one.drop_columns("dtype"))


def test_what_the_lock_names_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a published folder that lacks a record, or that holds one of another run; stages of settings that
    are gone, which DVC keeps in its lock, ask for none. A benchmark of another checkout stays there."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    outs = {}
    left_out = ("figures/b.html", "figures/b.png", "results/library/d.sha256", "models/e/config.json")
    for name in ("results/runs/a/outputs.jsonl", "figures/b.svg", "figures/c.svg", *left_out):
        files.write_text(name, name)
        outs[name] = hashlib.md5(name.encode()).hexdigest()
    stage = {"cmd": "true", "outs": [{"path": path, "md5": md5} for path, md5 in outs.items()]}
    gone = {"cmd": "true", "outs": [{"path": "results/runs/gone/outputs.jsonl", "md5": ""}]}
    files.write_text(
        "dvc.lock", json.dumps({"schema": "2.0", "stages": {"gone": gone, "check": {"cmd": "true"}, "one": stage}})
    )
    files.write_text(
        "dvc.yaml", json.dumps({"stages": {"check": {"cmd": "true"}, "one": {"cmd": "true", "outs": list(outs)}}})
    )
    files.write_text("docs/shown.md", "![A picture](../published/laptop/figures/b.svg)")
    files.write_text("published/laptop/results/old.json", "")
    kept = {f"results/benchmark/{name}" for name in ("current.json", "home/machine.json", "home/greedy-d/a.json")}
    kept |= {"results/benchmark.parquet", "figures/benchmark.svg"}
    # Of a format by itself.
    kept |= {"results/llama_cpp/int4/current.json", "results/llama_cpp/int4/home/b.json"}
    kept |= {"results/llama_cpp.parquet", "results/llama_cpp_costs.parquet"}
    # Of a name that it had once.
    kept |= {"results/once/current.json", "results/once/home/a.json", "results/once.parquet"}
    for name in (*kept, "results/benchmark/older/machine.json"):
        files.write_text(f"before/{name}", '"home"' if name.endswith("current.json") else name)
    archive.pack(Path("published/laptop", archive.RECORDS), {name: Path("before", name) for name in kept})
    without_torch("publish", "--out published", tmp_path)
    published = {path.relative_to("published/laptop").as_posix() for path in Path("published").rglob("*.*")}
    assert published == {archive.RECORDS, "params.yaml", "figures/b.svg"} | {
        name for name in kept if name.endswith("parquet")
    }
    archive.unfold(Path("published/laptop"), Path("shown"))
    shown = {path.relative_to("shown").as_posix() for path in Path("shown").rglob("*.*")}
    made = {"params.yaml", "dvc.yaml", "dvc.lock", "results/runs/a/outputs.jsonl", "figures/b.svg", "figures/c.svg"}
    assert shown == made | kept
    assert Path("shown/figures/benchmark.svg").read_text() == "figures/benchmark.svg"
    assert yaml.safe_load(Path("shown/dvc.lock").read_text()) == {
        "schema": "2.0",
        "stages": {"check": {"cmd": "true"}, "one": stage},
    }
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
    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    version = "0"

    def __init__(self, *arguments: Any):
        self.made.append(arguments)

    def lookup(self, **knobs: int) -> str:
        return f"lookup {knobs}"

    def tokens(self, prompt: list[int], options: GenerationOptions, drafting: Any) -> Iterator[int]:
        told = drafting(prompt) if callable(drafting) else drafting
        self.asked.append((told or "plain", options.model_dump(include={"do_sample", "request_key"})))
        return itertools.count(prompt[-1])

    def forwards(self) -> Curve:
        return Curve(contexts=[256], tokens=[1, 64], seconds=[[0.01, 0.02]])


# What is no measurement is written by every call.
EACH_TIME = (files.CURRENT, "machine.json")


class DraftEngine:
    """In the place of the drafter in llama.cpp: it tells what it is asked for."""

    made: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, *arguments: Any):
        self.made.append(arguments)

    def reset(self) -> None:
        self.fresh = True

    def drafted(self, text: Any, count: int) -> str:
        assert self.fresh
        self.fresh = False
        return f"draft {count}"


def test_another_engine_is_timed_side_by_side(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an audit of what other weights give, a way that is not tuned for a kind of text, and lost records;
    drawn outputs, which chance alone could make alike, are compared with none."""

    def given(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"))

    monkeypatch.setattr(model_sources, "gguf_file", lambda source, cache: Path("prompts.parquet"))
    monkeypatch.setattr(llama_cpp, "Engine", Engine)
    monkeypatch.setattr(llama_cpp, "DraftEngine", DraftEngine)
    monkeypatch.setattr(draft_gguf, "written", lambda drafter, cache: (drafter, cache))
    methods = {"autoregressive": {"decoder": "autoregressive"}}
    texts = {"greedy": {}, "drawn": {"do_sample": True, "top_k": 9}}
    grids = {"lookup": {"draft_tokens": [2, 3], "max_ngram": [4]}, "draft": {"draft_tokens": [5]}}
    asked = "--target models/target --drafter models/drafter --calibration results/calibration --tokens tokens.parquet"
    asked += f" --start body --prompts 2 --prompt-tokens 16 --output-tokens 12 --methods {given(methods)} --repeats 1"
    asked += f" --tuning-prompts 1 --tuning-output-tokens 4 --seed 0 --grids {{}} --texts {given(texts)}"
    asked += f" --source {given(RANDOM)} --cache . --llama-cpp {given(grids)} --costs results/calibration/costs.json"
    asked += " --costs-out results/llama_cpp_costs.parquet --left-out dynatree_reading"
    asked += " --decoding tokens.parquet --records results/llama_cpp --out results/llama_cpp.parquet"
    here("benchmark", asked)
    assert "benchmark: dynatree_reading left out: it reads" in capsys.readouterr().err
    assert Engine.made == [(Path("prompts.parquet"), 320, 1, every) for every in (False, True)]
    assert DraftEngine.made == [((Path("models/drafter"), Path()), 28, 1)]
    lookups = [f"lookup {{'draft_tokens': {tokens}, 'max_ngram': 4}}" for tokens in (2, 3)]
    for text in texts:
        (tuned,) = Path("results/llama_cpp").glob(f"*/tuned_{text}-*/llama_cpp_lookup.json")
        best = lookups[files.read_json(tuned)["best"]["draft_tokens"] - 2]
        told = [way for way, options in Engine.asked if options["do_sample"] == (text == "drawn")]
        # Each combination warm and timed, each way warm, then all on both prompts.
        assert told[:6] == [*lookups, *lookups, "draft 5", "draft 5"]
        assert Counter(told[6:]) == Counter({"plain": 3, best: 3, "draft 5": 3})
    assert {options["request_key"] for _, options in Engine.asked if options["do_sample"]} >= {(0,), (1,)}
    rows = parquet.read_table("results/llama_cpp.parquet").to_pylist()
    engines = ("llama_cpp", "llama_cpp_lookup", "llama_cpp_draft")
    assert {row["method"] for row in rows} == {"autoregressive", benchmark.AGAIN, *engines}
    told = {(row["text"], row["baseline"], row["prompts"]) for row in rows if row["part"] == "whole"}
    assert told == {(text, name, 2) for text in texts for name in ("autoregressive", benchmark.AGAIN, *engines)}
    assert {row["baseline"] for row in rows if row["part"] != "whole"} == set(engines)
    kinds = {"greedy": "greedy", "drawn": "sampled, temperature 1, top-k 9"}
    assert {(row["text"], row["kind"]) for row in rows} == {*kinds.items()}
    size = Path("prompts.parquet").stat().st_size
    assert {(row["weight_bytes"], row["dtype"]) for row in rows if row["method"] in engines} == {(size, None)}
    assert {row["dtype"] for row in rows if row["method"] not in engines} == {"float32"}
    best = {(row["text"], row["baseline"]) for row in rows if row["of_fastest"]}
    assert len(best) == 2 and {text for text, _ in best} == set(texts) and {name for _, name in best} <= set(engines)
    alike = {(row["text"], row["identical"] is None) for row in rows if row["method"] in engines}
    assert alike == {("greedy", False), ("drawn", True)}
    costs = parquet.read_table("results/llama_cpp_costs.parquet").to_pylist()
    assert [(row["tokens"], row["ms"]) for row in costs if row["engine"] == "llama_cpp"] == [(1, 10.0), (64, 20.0)]
    assert {(row["engine"], row["context"]) for row in costs} == {("llama_cpp", 256), ("float32", 16)}
    written = [path for path in Path("results/llama_cpp").rglob("*.json") if path.name not in EACH_TIME]
    records = {path: path.stat().st_mtime_ns for path in written}
    outputs = [
        row["output_ids"]
        for path in Path("results/llama_cpp").glob("*/greedy-*/*.json")
        for row in files.read_json(path)
        if row["method"] in engines
    ]
    assert len(outputs) == 6 and all(list(range(ids[0], ids[0] + 12)) == ids for ids in outputs)
    here("benchmark", asked)
    assert {path: path.stat().st_mtime_ns for path in records} == records
    # Another clean-up: the same documents, with other tokens where they are evaluated.
    documents = read_tokens("tokens.parquet")
    for document in documents:
        if document.split == EVALUATION:
            document.ids[:] = [*document.ids[1:], document.ids[0]]
    Path("cleaned").mkdir()
    write_tokens("cleaned/tokens.parquet", documents)
    here("benchmark", asked.replace("--tokens tokens.parquet", "--tokens cleaned/tokens.parquet"))
    further = {*Path("results/llama_cpp").rglob("*.json")} - {*records}
    kinds = Counter(path.parent.name.partition("-")[0] for path in further if path.name not in EACH_TIME)
    assert kinds == dict.fromkeys(texts, 2)


def test_costs_of_another_machine_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against batches stamped with the machine of one request's costs, and against speeds of trees that were
    grown by another machine's costs, a warning for all that is said."""
    shutil.copytree("results/calibration", "elsewhere")
    costs = files.read_json(Path("elsewhere/costs.json"))
    files.write_json(Path("elsewhere/costs.json"), {**costs, "machine": {**costs["machine"], "torch": "0.1"}})
    pair = "--target models/target --drafter models/drafter --calibration elsewhere"
    with pytest.raises(SystemExit):
        here("calibrate_batches", f"{pair} --contexts 16 --repeats 1 --batches 2")
    assert "calibration elsewhere: of another machine: torch is '0.1' there" in capsys.readouterr().err
    methods = json.dumps({"autoregressive": {"decoder": "autoregressive"}}, separators=(",", ":"))
    asked = f"{pair} --tokens tokens.parquet --start body --prompts 1 --prompt-tokens 16 --output-tokens 12 --repeats 1"
    asked += f" --methods {methods} --tuning-prompts 1 --tuning-output-tokens 4 --seed 0 --grids {{}} --texts {{}}"
    with pytest.raises(SystemExit):
        here(
            "benchmark", f"{asked} --decoding tokens.parquet --records elsewhere/records --out elsewhere/table.parquet"
        )
    assert "torch is" in (said := capsys.readouterr().err) and "but '0.1' for --calibration" in said
    made = runpy.run_path(str(SCRIPTS / "aggregate.py"))
    inputs = f"--results results --runs {RUN} --calibrations elsewhere/costs.json --model models/target --out elsewhere"
    with pytest.raises(UserError, match=r"but '0.1' for elsewhere/costs\.json"):
        made["aggregate"](made["parser"]().parse_args(inputs.split()), str)


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
        # Longer than what this process has audited.
        here("generate", f"{GENERATE} --output-tokens 14 --out wrong")
    assert ended.value.code == 2
    assert "not exact: output token" in capsys.readouterr().err
    assert not list(Path().glob("wrong/*"))


def test_half_precision_is_judged_by_the_tuning_split(folder: Path) -> None:
    """Guards against evaluation prompts that set the tolerance of their own outputs."""
    here("generate", f"{GENERATE} --dtype bfloat16 --out half")
    tuning = [document for document in read_tokens("tokens.parquet") if document.split == "tuning"]
    measured = audit.tolerance(checkpoint.load("models/target", "bfloat16"), tuning)
    assert {row["tolerance"] for row in files.read_jsonl(f"half/{files.AUDIT}")} == {measured}
