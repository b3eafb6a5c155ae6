"""Perplexity of a data set's evaluation split under the target, in one format of its weights."""

import argparse
from pathlib import Path

from dynatree import files
from dynatree.commands import options
from dynatree.data.splits import read_tokens
from dynatree.engine import kept
from dynatree.engine.machine import set_threads
from dynatree.errors import reported
from dynatree.measuring import perplexity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="model folder")
    parser.add_argument("--tokens", type=Path, required=True, help="tokens.parquet")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--limit", type=int, required=True, help="tokens to score")
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--stride", type=int, required=True)
    options.machine(parser)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    a = parser.parse_args()
    with reported():
        set_threads(a.threads)
        documents = [d.ids for d in read_tokens(a.tokens) if d.split == "evaluation"]
        target = kept.pair({"target": a.target}, a.dtype, a.device).target
        result = perplexity.sliding(target, documents, a.limit, a.window, a.stride)
        row = {"dataset": a.dataset, "dtype": a.dtype, "split": "evaluation", "window": a.window, "stride": a.stride}
        files.write_json(a.out, {**row, **result})


if __name__ == "__main__":
    main()
