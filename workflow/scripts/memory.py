"""Measure what one method holds in memory over the first prompt of a data set, in this process alone: memory.json."""

import argparse
import json
from pathlib import Path

from dynatree import files
from dynatree.commands import options
from dynatree.data.prompts import read_prompts
from dynatree.engine.machine import describe_machine, set_threads
from dynatree.errors import reported
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.method(parser)
    options.machine(parser)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    a = parser.parse_args()
    with reported():
        set_threads(a.threads)
        prompt = read_prompts(a.prompts)[0]
        measured = memory.record(
            options.folders(a), a.calibration, a.decoder, json.loads(a.knobs), a.dtype, a.device, prompt,
            GenerationOptions(max_new_tokens=a.output_tokens),
        )  # fmt: skip
        machine = describe_machine(a.dtype, a.device)
        files.write_json(a.out / files.MEMORY, {"machine": machine, **measured})


if __name__ == "__main__":
    main()
