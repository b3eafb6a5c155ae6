"""Fetch, through DVC, what is published of the run that dvc.lock names: raw records, tables, calibration.

The published archive is laid out below build/ as the remote that .dvc/config names, and `dvc pull` takes what is there.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from publish import named

from dynatree.archive import unfold
from dynatree.errors import UserError, reported

LOCK = Path("dvc.lock")
# Name and folder, as in .dvc/config.
NAME, REMOTE = "published", Path("build/remote")


def lay_out(published: Path, remote: Path) -> int:
    """Write each published file that dvc.lock names below `remote`, by its checksum as DVC does; says how many."""
    with tempfile.TemporaryDirectory() as temporary:
        unfold(published, Path(temporary))
        files = {md5: Path(temporary, path) for path, md5 in named(LOCK).items()}
        found = [
            (md5, file)
            for md5, file in files.items()
            if file.is_file() and hashlib.md5(file.read_bytes()).hexdigest() == md5
        ]
        for md5, file in found:
            place = remote / "files/md5" / md5[:2] / md5[2:]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", type=Path, default=Path("published"), help="default: published")
    a = parser.parse_args()
    with reported():
        published = a.published / yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["scale"]
        shutil.rmtree(REMOTE, ignore_errors=True)
        if not (count := lay_out(published, REMOTE)):
            raise UserError(f"{published}: nothing there is of the run that {LOCK} names")
        command = [sys.executable, "-m", "dvc", "pull", "--allow-missing", "--remote", NAME, "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"dvc pull: {' '.join(done.stderr.split())}")
        print(
            f"{count} files of {published}, as {LOCK} names them; made here instead: models, text, interactive figures"
        )


if __name__ == "__main__":
    main()
