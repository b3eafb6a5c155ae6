"""Put the benchmark's tables of its formats, each with ratios within it, one below the other."""

import argparse
from pathlib import Path

import pyarrow.parquet as parquet

from dynatree.data.documents import write_table
from dynatree.errors import reported
from dynatree.tables import metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", type=Path, nargs="+", required=True, help="table of each, in a folder of its name")
    parser.add_argument("--out", type=Path, required=True, help="Parquet table to write")
    a = parser.parse_args()
    with reported():
        found = [(path.parent.name, row) for path in a.formats for row in parquet.read_table(path).to_pylist()]
        rows = [row | {"dtype": dtype} for dtype, row in found]
        write_table(a.out, metrics.table(a.out.stem, rows))


if __name__ == "__main__":
    main()
