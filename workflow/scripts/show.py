"""Lay out what is published of a scale as in a checkout of its own, archive and all, beside this one's files.

Tables that are too large to be published are made again from the records.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from dynatree import files
from dynatree.archive import RECORDS, unfold
from dynatree.errors import UserError, reported

TABLE = re.compile(r"results/\w+\.parquet")


def asked(results: Path) -> list[str]:
    """What aggregate.py is to take of all that lies in `results`."""
    outputs, phases, memory = (
        sorted(path.parent for path in results.rglob(name)) for name in (files.OUTPUTS, files.PHASES, files.MEMORY)
    )
    costs = [path for name in ("costs", "batches") for path in sorted((results / "calibration").rglob(f"{name}.json"))]
    given = ["--results", results, "--runs", *outputs, "--timeline", *phases, "--memory", *memory, "--costs", *costs]
    given += ["--perplexity", *sorted(results.glob("perplexity/**/*.json"))]
    return [str(part) for part in (*given, "--drafter", results / "drafter_report.json")]


def complete(folder: Path) -> None:
    """Make tables again that the published `folder` lacks, where the model is there whose tokens they spell out."""
    lock = folder / "dvc.lock"
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].values() if lock.is_file() else ()
    tables = [path for stage in stages for out in stage.get("outs", ()) if TABLE.fullmatch(path := out["path"])]
    lacking = [Path(path) for path in tables if not (folder / path).is_file()]
    if not lacking:
        return
    pair = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))["pair"]
    model, made = Path("models") / pair, folder / "made"
    names = ", ".join(path.name for path in lacking)
    if not (model / "tokenizer.json").is_file():
        print(f"without {names}: made from the records once {model} is there (make models)")
        return
    script = Path(__file__).with_name("aggregate.py")
    command = [sys.executable, str(script), *asked(folder / "results"), "--model", str(model), "--out", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"aggregate: {' '.join(done.stderr.split())}")
    for path in lacking:
        (made / path.name).rename(folder / path)
    shutil.rmtree(made)
    print(f"made from the records: {names}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True, help="folder of --published")
    parser.add_argument("--published", type=Path, default=Path("published"), help="default: published")
    parser.add_argument("--out", type=Path, default=Path("build/show"), help="folder to write into, below the name")
    a = parser.parse_args()
    with reported():
        there = sorted(path.parent.name for path in a.published.glob(f"*/{RECORDS}"))
        if a.scale not in there:
            raise UserError(f"--scale: no {a.scale!r} in {a.published}; choose one of {', '.join(there)}")
        out, new = a.out / a.scale, a.out / f".{a.scale}.part"
        for folder in (new, out):
            shutil.rmtree(folder, ignore_errors=True)
        unfold(a.published / a.scale, new)
        complete(new)
        new.rename(out)
        found = {
            "figures": len(list(out.glob("figures/*.svg"))),
            "tables": len(list(out.glob("results/*.parquet"))),
            "records": len([path for path in out.glob("results/*/**/*") if path.is_file()]),
        }
        print(f"{out}: params.yaml, {', '.join(f'{count} {what}' for what, count in found.items())}")


if __name__ == "__main__":
    main()
