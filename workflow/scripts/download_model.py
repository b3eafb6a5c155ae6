"""Fetch or make a model (package, hub, local folder, random) and write it as a model folder."""

import argparse
import json
from pathlib import Path

from dynatree.data import model_sources
from dynatree.errors import readable, reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="JSON object: kind and that kind's keys, as in params.yaml")
    parser.add_argument("--drafter", action="store_true", help="write the list of drafted tokens, too: all of them")
    parser.add_argument("--seed", type=int, default=0, help="of random models")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps downloaded archives")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    arguments = parser.parse_args()
    with reported():
        with readable("--source"):
            source = model_sources.parse(json.loads(arguments.source))
        model_sources.build(source, arguments.out, arguments.cache, arguments.seed, arguments.drafter)


if __name__ == "__main__":
    main()
