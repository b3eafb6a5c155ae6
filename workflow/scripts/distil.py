"""Write a drafter's model folder: from its trained part, which is trained first unless one is given."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from dynatree.commands import options
from dynatree.data.splits import read_tokens
from dynatree.distil import part
from dynatree.distil.make import make
from dynatree.distil.recipe import Recipe
from dynatree.engine.machine import set_threads
from dynatree.errors import readable, reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="model folder")
    parser.add_argument("--part", type=Path, help="folder of the trained part; without it, it is trained")
    parser.add_argument("--start", type=Path, help="trained part to begin the training with")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="tokens.parquet of each data set")
    parser.add_argument("--source", required=True, help="JSON object: kind distil and its keys, as in params.yaml")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--device", default="cpu", help="cpu or cuda, to train on")
    options.threads(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder for labels and checkpoints, kept for a resume")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    a = parser.parse_args()
    with reported():
        set_threads(a.threads)
        with readable("--source"):
            recipe = Recipe(**json.loads(a.source))
        datasets = {path.stem: read_tokens(path) for path in a.tokens}
        trained = a.part
        if trained is None:
            keys = {"seed": a.seed, "work": a.work, "device": a.device, "start": a.start}
            trained = make(a.target, datasets, recipe, command=shlex.join(["python", *sys.argv]), **keys)
        else:
            part.check(trained, recipe, datasets)
        part.assemble(trained, a.target, a.out)


if __name__ == "__main__":
    main()
