"""Write checksums of code, a line a file: what comments and docstrings say changes none of them."""

import argparse
from pathlib import Path

from dynatree.code_checksums import listing
from dynatree.errors import reported
from dynatree.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="Python code, or any other file, taken by its bytes")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    a = parser.parse_args()
    with reported():
        write_text(a.out, listing(a.files))


if __name__ == "__main__":
    main()
