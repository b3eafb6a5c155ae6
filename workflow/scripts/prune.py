"""Remove what the parameters no longer ask for: folders of runs and passes, records of earlier benchmarks; and what was
kept of code and parameters as they were a month ago."""

import argparse
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dynatree.code_checksums import KEPT
from dynatree.errors import reported
from dynatree.files import CURRENT, MEMORY, OUTPUTS, PHASES, read_json
from dynatree.study import grid, params
from dynatree.tables.schema import APART

RECORDS = (OUTPUTS, PHASES, MEMORY)
# Small files that are made again when they are asked for.
STAMPS = (Path(KEPT), Path(".cache/checked"))
MONTH = 30 * 24 * 3600


def runs(results: Path) -> Iterator[Path]:
    """Folders of records that no run or pass asks for; whatever else lies below the results is not touched."""
    known = params.read("params.yaml")
    wanted = {results / folder for folder in (*grid.expand(known), *grid.passes(known))}
    found = {path.parent for name in RECORDS for path in results.rglob(name)}
    yield from sorted(found - wanted)


def benchmarks(results: Path) -> Iterator[Path]:
    """Folders of records that the benchmarks' tables are not made of; none where nothing says of which they are."""
    formats = params.read("params.yaml").benchmarked
    for current in (path for name in APART for path in sorted((results / name).rglob(CURRENT))):
        if current.parent.parent.name == "benchmark" and current.parent.name not in formats:
            yield current.parent
            continue
        named = read_json(current)
        others = [path for path in current.parent.iterdir() if path.is_dir() and not (path / CURRENT).is_file()]
        yield from sorted(path for path in others if path.name != named)


def stamps() -> Iterator[Path]:
    """Files that were not written for a month."""
    begin = time.time() - MONTH
    for folder in STAMPS:
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_mtime < begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    a = parser.parse_args()
    with reported():
        for gone in [*runs(a.results), *benchmarks(a.results), *stamps()]:
            print(f"remove {gone}")
            if a.dry_run:
                continue
            if gone.is_dir():
                shutil.rmtree(gone)
            else:
                gone.unlink()


if __name__ == "__main__":
    main()
