"""Copy what dvc.lock names of results and figures into a folder, laid out as here; with it, records of what was made
when asked for (schema.APART): those of this checkout, or else those that lie in the folder already."""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from dynatree.errors import UserError, reported
from dynatree.files import CURRENT, read_json, write_text
from dynatree.study import params
from dynatree.tables.schema import APART

STATE = ("params.yaml", "dvc.yaml", "dvc.lock")
# Drawn again in seconds, and each as large as all records of a run.
LEFT_OUT = ".html"


def named(lock: Path) -> dict[Path, str]:
    """MD5 by path of the results and figures that `lock` names."""
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].values()
    outs = {Path(out["path"]): str(out["md5"]) for stage in stages for out in stage.get("outs", ())}
    return {path: md5 for path, md5 in outs.items() if path.parts[0] in ("results", "figures")}


def forget_what_is_gone(lock: Path) -> None:
    """Take out of `lock` the stages that there are no longer: DVC keeps those of settings that params.yaml had once."""
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise UserError(f"dvc stage list: {' '.join(listed.stderr.split())}")
    content = yaml.safe_load(lock.read_text(encoding="utf-8"))
    if gone := content["stages"].keys() - set(listed.stdout.split()):
        content["stages"] = {name: stage for name, stage in content["stages"].items() if name not in gone}
        write_text(lock, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def up_to_date(target: str) -> bool:
    """Whether the job graph has made `target` from what is here now."""
    command = ["snakemake", "--cores", "1", "--dry-run", target]
    said = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    return Path(target).is_file() and "Nothing to be done" in said.stdout + said.stderr


def apart(root: Path, name: str) -> list[Path]:
    """What was made when asked for, below `root`: records, each with its machine and calibration, table and figure."""
    records = root / "results" / name
    found = [path for path in (records / read_json(records / CURRENT)).rglob("*") if path.is_file()]
    found += [records / CURRENT, *(root / "figures").glob(f"{name}.*")]
    found += [root / "results" / f"{table}.parquet" for table in APART[name]]
    return [path.relative_to(root) for path in found if path.suffix != LEFT_OUT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into, below the name of the scale")
    a = parser.parse_args()
    with reported():
        out = a.out / params.read("params.yaml").scale
        forget_what_is_gone(Path("dvc.lock"))
        files = {path: md5 for path, md5 in named(Path("dvc.lock")).items() if path.suffix != LEFT_OUT}
        for path, md5 in files.items():
            if not path.is_file() or hashlib.md5(path.read_bytes()).hexdigest() != md5:
                raise UserError(f"{path}: not as dvc.lock names it; dvc repro, or dvc commit --force")
        # Written aside, then renamed: what is there is the old one or the new one.
        new = out.with_name(f".{out.name}.part")
        shutil.rmtree(new, ignore_errors=True)
        copied = {path: Path() for path in (*map(Path, STATE), *files)}
        for name in APART:
            if up_to_date(f"figures/{name}.svg"):
                copied |= dict.fromkeys(apart(Path(), name), Path())
            elif (out / "results" / name / CURRENT).is_file():
                print(f"{name}: not up to date here, kept as it was published")
                copied |= dict.fromkeys(apart(out, name), out)
        for path, root in copied.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, new / path)
        shutil.rmtree(out, ignore_errors=True)
        new.rename(out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        print(f"{out}: {len(files)} files of dvc.lock, {size / 2**20:.1f} MiB in all")


if __name__ == "__main__":
    main()
