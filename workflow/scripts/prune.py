"""Remove the folders of runs and passes that the parameters no longer ask for."""

import argparse
import shutil
from pathlib import Path

from dynatree.errors import reported
from dynatree.files import MEMORY, OUTPUTS, PHASES
from dynatree.study import grid, params

RECORDS = (OUTPUTS, PHASES, MEMORY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    a = parser.parse_args()
    with reported():
        known = params.read("params.yaml")
        wanted = {a.results / folder for folder in (*grid.expand(known), *grid.passes(known))}
        # A folder of records holds their files; whatever else lies below the results is not touched.
        found = {path.parent for name in RECORDS for path in a.results.rglob(name)}
        for folder in sorted(found - wanted):
            print(f"remove {folder}")
            if not a.dry_run:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
