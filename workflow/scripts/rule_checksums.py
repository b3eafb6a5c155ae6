"""Write the checksum of each rule and of each helper that it uses, a file a rule: what comments say changes none."""

import argparse
from pathlib import Path

from dynatree.errors import reported
from dynatree.files import write_text
from dynatree.rule_checksums import counted, listing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=Path, required=True, help="folder of the rule files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    a = parser.parse_args()
    with reported():
        for rule in counted(a.rules):
            write_text(a.out / f"{rule}.sha256", listing(rule, a.rules))


if __name__ == "__main__":
    main()
