"""Say how good the drafter is on evaluation text: agreement, calibration, cost, simulated speeds; to JSON."""

import argparse
from pathlib import Path

import torch

from dynatree import files
from dynatree.commands import options
from dynatree.costs.calibration import Calibration
from dynatree.data.splits import EVALUATION, read_tokens
from dynatree.distil import report
from dynatree.engine import checkpoint, kept
from dynatree.engine.machine import describe_machine, set_threads
from dynatree.errors import reported
from dynatree.measuring.clock import alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.models(parser)
    options.machine(parser)
    parser.add_argument("--calibration", type=Path, required=True, help="folder of what was measured for this pair")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="tokens.parquet of each data set")
    parser.add_argument("--limit", type=int, required=True, help="evaluation tokens read of each data set, at most")
    parser.add_argument("--length", type=int, required=True, help="tokens of a row")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    a = parser.parse_args()
    with reported():
        set_threads(a.threads)
        texts = {
            path.stem: torch.tensor([i for d in read_tokens(path) if d.split == EVALUATION for i in d.ids])
            for path in a.tokens
        }
        machine = describe_machine(a.dtype, a.device)
        folders = options.folders(a)
        fingerprints = checkpoint.fingerprints(folders)
        measured = Calibration.read(a.calibration, fingerprints, machine)
        target, drafter = kept.pair(folders, a.dtype, a.device)
        with alone():
            passages = report.follow(target, texts, a.limit, a.length)
            found = report.report(target, drafter, passages, measured)
        print(report.describe(found))
        files.write_json(a.out, {**found, "machine": machine})


if __name__ == "__main__":
    main()
