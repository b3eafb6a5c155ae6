"""Write the checksum of a rule and of each helper that it uses: what comments say changes none of them."""

import argparse
from pathlib import Path

from dynatree.errors import UserError, reported
from dynatree.files import write_text
from dynatree.rule_checksums import files, listing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", required=True)
    parser.add_argument("--rules", type=Path, required=True, help="folder of the rule files")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    a = parser.parse_args()
    with reported():
        if a.rule not in (known := files(a.rules)):
            raise UserError(f"--rule: no {a.rule!r}; choose one of {', '.join(known)}")
        write_text(a.out, listing(a.rule, a.rules))


if __name__ == "__main__":
    main()
