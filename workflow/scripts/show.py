"""Lay out what is published of a scale as in a checkout of its own, archive and all, beside this one's files."""

import argparse
import shutil
from pathlib import Path

from dynatree.archive import RECORDS, unfold
from dynatree.errors import UserError, reported


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
        new.rename(out)
        found = {
            "figures": len(list(out.glob("figures/*.svg"))),
            "tables": len(list(out.glob("results/*.parquet"))),
            "records": len([path for path in out.glob("results/*/**/*") if path.is_file()]),
        }
        print(f"{out}: params.yaml, {', '.join(f'{count} {what}' for what, count in found.items())}")


if __name__ == "__main__":
    main()
