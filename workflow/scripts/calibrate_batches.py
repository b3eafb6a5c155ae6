"""Measure what forwards over several requests at once cost on this machine."""

import argparse
from pathlib import Path

from dynatree.commands import options
from dynatree.costs.calibration import Calibration
from dynatree.engine import checkpoint
from dynatree.engine.machine import describe_machine, set_threads
from dynatree.errors import UserError, reported
from dynatree.measuring import forward_times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.models(parser)
    options.machine(parser)
    parser.add_argument("--calibration", type=Path, required=True, help="folder of that of one request; written to")
    parser.add_argument("--contexts", type=int, nargs="+", required=True, help="as there: the middle one is timed")
    parser.add_argument("--repeats", type=int, required=True, help="timed forwards of each size")
    parser.add_argument("--batches", type=options.at_least_one, nargs="+", required=True, help="requests at once")
    a = parser.parse_args()
    with reported():
        set_threads(a.threads)
        folders = options.folders(a)
        fingerprints = checkpoint.fingerprints(folders)
        here = describe_machine(a.dtype, a.device)
        known = Calibration.read(a.calibration, fingerprints, here)
        there = known.costs.machine
        # They are kept as of the machine of one request's costs. How much memory it has moves none of them.
        if differing := [key for key in here if key != "memory_gib" and there.get(key) != here[key]]:
            values = f"{differing[0]} is {there.get(differing[0])!r} there, {here[differing[0]]!r} here"
            again = "snakemake --cores 1 --forcerun calibrate -- all"
            raise UserError(f"calibration {a.calibration}: of another machine: {values}; measure it again: {again}")
        sizes = (a.contexts, a.repeats, a.dtype, a.device, a.batches)
        forward_times.with_batches(folders, known, *sizes).write_batches(a.calibration)


if __name__ == "__main__":
    main()
