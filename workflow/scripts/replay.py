"""Draw the recorded passes of one prompt as an animated SVG."""

import argparse
from pathlib import Path

from dynatree.commands import lanes
from dynatree.errors import reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder with <table>.parquet")
    parser.add_argument("--out", type=Path, required=True, help=".svg to write")
    arguments = parser.parse_args()
    with reported():
        lanes.write(arguments.out, lanes.recorded(arguments.tables))


if __name__ == "__main__":
    main()
