"""Publish what dvc.lock names of results and figures, in a folder of the scale, laid out as here: tables, numbers,
captions and the pictures that documents show of this scale as files, all else in one archive.

With it, records of what was made when asked for (schema.APART): those of this checkout, or else those published before.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml

from dynatree.archive import RECORDS, pack, unfold
from dynatree.errors import UserError, reported
from dynatree.files import CURRENT, read_json, write_text
from dynatree.study import params
from dynatree.tables.schema import APART

STATE = ("params.yaml", "dvc.yaml", "dvc.lock")
# What a reader looks at, as files; what else there is goes into the archive.
READ = re.compile(
    r"params\.yaml|results/\w+\.parquet|results/(metrics|pace)\.json|results/plots/.+|figures/.+\.caption\.txt"
)
# Made again in seconds: interactive pages, checksums of code, and pictures that are there as drawings.
LEFT_OUT = re.compile(r"figures/.+\.(html|png)|results/library/.+")
# Bytes of a table, at most: a larger one is made again from the records (show.py).
LARGEST = 2**19


def left_out(path: str, size: int) -> bool:
    """Whether a file of so many bytes is made again by who looks."""
    return bool(LEFT_OUT.fullmatch(path)) or (size > LARGEST and bool(re.fullmatch(r"results/\w+\.parquet", path)))


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
    # One of the whole, or one of each format.
    currents = sorted((root / "results" / name).rglob(CURRENT))
    homes = [current.parent / read_json(current) for current in currents]
    found = [path for home in homes for path in home.rglob("*") if path.is_file()]
    found += [*currents, *(root / "figures").glob(f"{name}.*")]
    found += [root / "results" / f"{table}.parquet" for table in APART.get(name, (name,))]
    return [path.relative_to(root) for path in found]


def shown(scale: str, root: Path) -> set[str]:
    """Pictures of this scale that the documents of the checkout `root` show as published."""
    texts = [path.read_text(encoding="utf-8") for path in (*root.glob("*.md"), *root.glob("docs/**/*.md"))]
    return {name for text in texts for name in re.findall(rf"published/{scale}/(figures/\w+\.svg)", text)}


def publish(content: Mapping[str, Path], pictures: set[str], out: Path) -> None:
    """Write `out` of `content` (where each file lies, by its path in a checkout) in place of what is there.

    It is written aside, then renamed: what is there is the old one or the new one.
    """
    new, old = (out.with_name(f".{out.name}.{word}") for word in ("part", "old"))
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    packed = {}
    for path, file in content.items():
        if left_out(path, file.stat().st_size):
            continue
        if READ.fullmatch(path) or path in pictures:
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, new / path)
        else:
            packed[path] = file
    pack(new / RECORDS, packed)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into, below the name of the scale")
    a = parser.parse_args()
    with reported(), tempfile.TemporaryDirectory() as temporary:
        scale = params.read("params.yaml").scale
        out, before = a.out / scale, Path(temporary)
        forget_what_is_gone(Path("dvc.lock"))
        files = named(Path("dvc.lock"))
        for path, md5 in files.items():
            if not path.is_file() or hashlib.md5(path.read_bytes()).hexdigest() != md5:
                raise UserError(f"{path}: not as dvc.lock names it; dvc repro, or dvc commit --force")
        content = {path.as_posix(): path for path in (*map(Path, STATE), *files)}
        if (out / RECORDS).is_file():
            unfold(out, before)
        # What was published under a name of its time stays, too.
        earlier = sorted({path.relative_to(before).parts[1] for path in before.glob(f"results/**/{CURRENT}")})
        for name in dict.fromkeys([*APART, *earlier]):
            if name in APART and up_to_date(f"figures/{name}.svg"):
                content |= {path.as_posix(): path for path in apart(Path(), name)}
            elif name in earlier:
                print(f"{name}: not up to date here, kept as it was published")
                content |= {path.as_posix(): before / path for path in apart(before, name)}
            else:
                print(f"{name}: not up to date here, and none was published before")
        publish(content, shown(scale, Path()), out)
        written = [path for path in out.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in written)
        print(
            f"{out}: {len(content)} files as {len(written)}, {size / 2**20:.1f} MiB; to look: make show SCALE={scale}"
        )


if __name__ == "__main__":
    main()
