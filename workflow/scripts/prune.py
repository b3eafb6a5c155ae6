"""Remove run folders that the parameters no longer ask for, from results/runs, sweep, penalised and timeline."""

import argparse
import shutil
from pathlib import Path

from dynatree import grid, params
from dynatree.errors import reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    a = parser.parse_args()
    with reported():
        known = params.read("params.yaml")
        wanted = {a.results / folder for folder in (*grid.expand(known), *grid.timeline(known))}
        for folder in sorted(
            path for top in ("runs", "sweep", "penalised", "timeline") for path in a.results.glob(f"{top}/*/*/*")
        ):
            if folder.is_dir() and folder not in wanted:
                print(f"remove {folder}")
                if not a.dry_run:
                    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
