"""Fetch a data set and write its documents, cleaned, as one Parquet file."""

import argparse
import json
from pathlib import Path

from dynatree import plugins
from dynatree.data.documents import write_documents
from dynatree.errors import readable, reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", required=True, help="a file of dynatree/sources")
    parser.add_argument("--source", required=True, help="JSON object: that kind's keys, as in params.yaml")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps downloaded archives")
    parser.add_argument("--out", type=Path, required=True, help="documents.parquet to write")
    arguments = parser.parse_args()
    with reported():
        module = plugins.load("data.sources", arguments.kind)
        with readable("--source"):
            source = module.Parameters(**json.loads(arguments.source))
        write_documents(arguments.out, module.documents(source, arguments.cache))


if __name__ == "__main__":
    main()
