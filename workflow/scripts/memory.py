"""Measure what one method holds in memory over the first prompt of a data set, in this process alone: memory.json."""

import argparse
import json
from pathlib import Path

from dynatree import files, memory, options, provenance
from dynatree.errors import reported
from dynatree.text.prompts import read_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.method(parser)
    options.machine(parser)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    a = parser.parse_args()
    with reported():
        provenance.set_threads(a.threads)
        prompt = read_prompts(a.prompts)[0]
        measured = memory.record(
            options.folders(a), a.calibration, a.decoder, json.loads(a.knobs), a.dtype, a.device, prompt,
            a.output_tokens,
        )  # fmt: skip
        machine = provenance.describe(a.dtype, a.device)
        files.write_json(a.out / files.MEMORY, {"machine": machine, **measured})


if __name__ == "__main__":
    main()
