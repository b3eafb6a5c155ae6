"""What is published: all that dvc.lock names is there, and tables and numbers come out of the raw records again."""

import hashlib
import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as parquet
import pytest
import yaml

from dynatree import archive, files
from dynatree.engine.tokenizer import text_tokenizer
from dynatree.tables import comparison, metrics
from tests.workflow.world import ROOT

PUBLISHED = sorted(path.parent for path in (ROOT / "published").glob(f"*/{archive.RECORDS}"))
PUBLISH, AGGREGATE, SHOW = (
    runpy.run_path(str(ROOT / f"workflow/scripts/{name}.py")) for name in ("publish", "aggregate", "show")
)
MIB = 2**20
DVC = sys.executable, "-m", "dvc"


class Scale(NamedTuple):
    """A published folder, what it holds laid out as in a checkout, and what its parameters say."""

    published: Path
    folder: Path
    params: dict[str, Any]


@pytest.fixture(scope="module", params=PUBLISHED, ids=lambda path: path.name)
def scale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scale:
    folder = tmp_path_factory.mktemp(request.param.name)
    archive.unfold(request.param, folder)
    return Scale(request.param, folder, yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")))


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return found


def sizes(scale: Scale) -> dict[str, int]:
    """Bytes of what its dvc.lock names, by path."""
    lock = yaml.safe_load((scale.folder / "dvc.lock").read_text(encoding="utf-8"))
    outs = [out for stage in lock["stages"].values() for out in stage.get("outs", ())]
    return {out["path"]: out["size"] for out in outs}


def test_all_that_the_lock_names_is_there(scale: Scale) -> None:
    """Guards against numbers whose raw records nobody can have."""
    assert scale.params["scale"] == scale.published.name
    named, size = PUBLISH["named"](scale.folder / "dvc.lock"), sizes(scale)
    expected = {path: md5 for path, md5 in named.items() if not PUBLISH["left_out"](path.as_posix(), size[str(path)])}
    assert {path.parts[0] for path in expected} == {"results", "figures"}
    found = {path: hashlib.md5((scale.folder / path).read_bytes()).hexdigest() for path in expected}
    assert found == expected


def test_the_lock_of_this_checkout_is_published(tmp_path: Path) -> None:
    """Guards against a new dvc.lock without its records: `make publish` belongs to it."""
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "dvc.lock"], cwd=ROOT, check=False).returncode:
        pytest.skip("dvc.lock is not as it was committed: measured here, or no git")
    name = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["scale"]
    archive.unfold(ROOT / "published" / name, tmp_path)
    assert (tmp_path / "dvc.lock").read_bytes() == (ROOT / "dvc.lock").read_bytes()


def test_little_lies_there_and_nothing_twice() -> None:
    """Guards against a repository that grows by every record, by checksums and by pictures that nobody is shown."""
    found = [path for path in (ROOT / "published").rglob("*") if path.is_file()]
    assert len(found) <= 200
    assert sum(path.stat().st_size for path in found) <= 15 * MIB
    assert not [path for path in found if path.suffix in (".sha256", ".md5", ".html", ".png")]
    pictures = {path for path in found if path.suffix == ".svg"}
    for folder in PUBLISHED:
        shown = {folder / name for name in PUBLISH["shown"](folder.name, ROOT)}
        assert {path for path in pictures if path.is_relative_to(folder)} == shown
    contents = [path.read_bytes() for path in (*pictures, *(ROOT / "figures").glob("*.svg"))]
    assert len(set(contents)) == len(contents)


def test_the_table_of_runs_comes_from_the_records(scale: Scale) -> None:
    """Guards against a table of other records than those beside it, or of none."""
    results = scale.folder / "results"
    folders = [path.parent for path in sorted(results.rglob(files.OUTPUTS))]
    made = metrics.runs([metrics.Records.read(results, folder) for folder in folders])
    # Columns of today's that it lacks it was published before.
    stated = rows(results / "runs.parquet")
    assert ordered(made, [*stated[0]]) == ordered(stated, [*stated[0]])


@pytest.mark.slow
def test_all_that_is_aggregated_comes_from_the_records(scale: Scale, tmp_path: Path) -> None:
    """The same for every table and number, of what was published by the rules of today."""
    results, made = scale.folder / "results", tmp_path / "results"
    if not (results / "pace.json").is_file():
        pytest.skip("published before there was a pace.json")
    target = ROOT / "models" / scale.params["pair"]
    asked = [*SHOW["asked"](results), "--model", str(target), "--out", str(made)]
    known = (target / "tokenizer.json").is_file()
    decode = partial(text_tokenizer(target).decode, skip_special_tokens=False) if known else str
    AGGREGATE["aggregate"](AGGREGATE["parser"]().parse_args(asked), decode)
    for table in sorted(made.glob("*.parquet")):
        if not (results / table.name).is_file():
            assert PUBLISH["left_out"](f"results/{table.name}", sizes(scale)[f"results/{table.name}"])
            continue
        stated = rows(results / table.name)
        # Texts need the model's tokenizer.
        columns = [name for name in stated[0] if known or "text" not in name]
        assert ordered(rows(table), columns) == ordered(stated, columns), table.name
    for path in (*made.glob("*.json"), *made.glob("plots/*")):
        name = path.relative_to(made)
        assert sorted(path.read_text().splitlines()) == sorted((results / name).read_text().splitlines()), name


@pytest.mark.slow
def test_tables_that_are_left_out_are_made_again(tmp_path: Path) -> None:
    """Guards against a large table that is neither published nor to be had, or that is another one."""
    lacking = [folder for folder in PUBLISHED if not (folder / "results/nodes.parquet").is_file()]
    if not lacking:
        pytest.skip("all tables are small")
    scale = min(lacking, key=lambda folder: (folder / archive.RECORDS).stat().st_size).name
    command = [sys.executable, str(ROOT / "workflow/scripts/show.py"), "--scale", scale, "--out", str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    if "without nodes.parquet" in said:
        pytest.skip("no models")
    named = PUBLISH["named"](tmp_path / scale / "dvc.lock")
    assert all((tmp_path / scale / path).is_file() for path in named if path.match("results/*.parquet"))
    key = itemgetter("experiment", "method", "settings", "dataset", "prompt_id", "repeat", "round")
    stated = {key(row): row["accepted"] for row in rows(tmp_path / scale / "results/rounds.parquet")}
    accepted = Counter[Any]()
    for row in rows(tmp_path / scale / "results/nodes.parquet"):
        accepted[key(row)] += row["accepted"] and row["depth"] > 0
    # Those of instrumented passes are in no run.
    both = accepted.keys() & stated.keys()
    assert len(both) > len(accepted) / 2 and {one: accepted[one] for one in both} == {one: stated[one] for one in both}


def ordered(found: list[dict[str, Any]], columns: list[str]) -> list[str]:
    """Rows in an order that does not depend on that of the records."""
    return sorted(repr([row[name] for name in columns]) for row in found)


def test_the_benchmark_s_table_comes_from_its_records(scale: Scale) -> None:
    """The same for the speeds of the benchmark, where it was run."""
    results = scale.folder / "results"
    if not (results / "benchmark.parquet").is_file():
        pytest.skip("no benchmark at this scale")
    table = rows(results / "benchmark.parquet")
    for dtype, text in {(row["dtype"], row["text"]) for row in table}:
        records = sorted((results / "benchmark" / dtype).glob(f"*/{text}-*/*.json"))
        again = sorted((results / "benchmark" / dtype).glob(f"*/{text}-*/again/*/*.json"))
        made = comparison.summary(
            text,
            [row for path in records for row in files.read_json(path)],
            {path.parent.name: files.read_json(path) for path in again},
        )
        for name in ("value", "low", "high", "worst", "worst_again"):
            stated = {key(row): row[name] for row in table if (row["dtype"], row["text"]) == (dtype, text)}
            assert {key(row): row[name] for row in made} == pytest.approx(stated), name


def key(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """What a row of the benchmark's table is about."""
    return row["method"], row["dataset"], row["baseline"], row["part"]


def test_what_is_shown_is_laid_out_beside(tmp_path: Path) -> None:
    """Guards against `make show` in place of a user's own files, and against a scale that is not published."""
    for name in ("params.yaml", "results/runs.parquet", "results/runs/a/outputs.jsonl", "figures/b.svg"):
        files.write_text(tmp_path / "made" / name, name)
    content = {path.relative_to(tmp_path / "made").as_posix(): path for path in (tmp_path / "made").rglob("*.*")}
    PUBLISH["publish"](content, set(), tmp_path / "published/mine")
    assert {path.name for path in (tmp_path / "published").rglob("*.*")} == {
        "params.yaml",
        "runs.parquet",
        archive.RECORDS,
    }
    files.write_text(tmp_path / "params.yaml", "the user's own")
    script = [str(ROOT / "workflow/scripts/show.py"), "--scale"]
    for _ in range(2):
        said = subprocess.run(
            [sys.executable, *script, "mine"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert said.stdout == "build/show/mine: params.yaml, 1 figures, 1 tables, 1 records\n"
    shown = {path.relative_to(tmp_path / "build/show/mine").as_posix() for path in tmp_path.glob("build/**/*.*")}
    assert content.keys() == {name for name in shown if not name.startswith(".")}
    assert (tmp_path / "params.yaml").read_text() == "the user's own"
    wrong = subprocess.run([sys.executable, *script, "huge"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and re.search("no 'huge' .*; choose one of mine", wrong.stderr)


def test_what_is_published_of_the_run_can_be_pulled(tmp_path: Path) -> None:
    """Guards `make pull` in a fresh clone: the lock's records come through DVC, models need not be there."""
    outs = {name: hashlib.md5(name.encode()).hexdigest() for name in ("results/runs/a/outputs.jsonl", "models/b.json")}
    listed = [{"path": path, "hash": "md5", "md5": md5, "size": len(path)} for path, md5 in outs.items()]
    stages = {name: {"cmd": "true", "outs": [out]} for name, out in zip("ab", listed, strict=True)}
    files.write_text(tmp_path / "dvc.lock", json.dumps({"schema": "2.0", "stages": stages}))
    plain = {name: {"cmd": "true", "outs": [out["path"]]} for name, out in zip("ab", listed, strict=True)}
    files.write_text(tmp_path / "dvc.yaml", json.dumps({"stages": plain}))
    files.write_text(tmp_path / "params.yaml", "scale: mine")
    files.write_text(tmp_path / "made", "results/runs/a/outputs.jsonl")
    files.write_text(tmp_path / "other", "of another run")
    subprocess.run([*DVC, "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    files.write_text(tmp_path / ".dvc/config", (ROOT / ".dvc/config").read_text())
    subprocess.run([*DVC, "config", "core.no_scm", "true"], cwd=tmp_path, check=True)
    pull = [sys.executable, str(ROOT / "workflow/scripts/pull.py")]
    for name, status, said in (("other", 2, "nothing there is of the run"), ("made", 0, "1 files of published/mine")):
        PUBLISH["publish"]({"results/runs/a/outputs.jsonl": tmp_path / name}, set(), tmp_path / "published/mine")
        done = subprocess.run(pull, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done.stderr
    assert (tmp_path / "results/runs/a/outputs.jsonl").read_text() == "results/runs/a/outputs.jsonl"
    assert not (tmp_path / "models/b.json").exists()


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    """Guards against an archive that differs by the hour, the user or the order of a folder."""
    for name in "ab":
        files.write_text(tmp_path / name, name * 999)
    archive.pack(tmp_path / "one/x.xz", {"d/a": tmp_path / "a", "b": tmp_path / "b"})
    for name in "ba":
        files.write_text(tmp_path / "again" / name, name * 999)
        (tmp_path / "again" / name).chmod(0o600)
    archive.pack(tmp_path / "two/x.xz", {"b": tmp_path / "again/b", "d/a": tmp_path / "again/a"})
    assert (tmp_path / "one/x.xz").read_bytes() == (tmp_path / "two/x.xz").read_bytes()
