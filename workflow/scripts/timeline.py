"""Time the phases of one method over the first prompt of a data set, by an instrumented pass: phases.json."""

import argparse
import json
from pathlib import Path

from dynatree import files
from dynatree.commands import options
from dynatree.data.prompts import read_prompts
from dynatree.engine.machine import describe_machine, set_threads
from dynatree.errors import readable, reported
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import loading, phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.method(parser)
    options.machine(parser)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    a = parser.parse_args()
    with reported():
        set_threads(a.threads)
        prompt = read_prompts(a.prompts)[0]
        with readable("--knobs"):
            knobs = json.loads(a.knobs)
        models, decoder = loading.load(options.folders(a), a.calibration, a.decoder, knobs, a.dtype, a.device)
        machine = describe_machine(a.dtype, a.device)
        measured = phases.record(models, decoder, prompt, GenerationOptions(max_new_tokens=a.output_tokens))
        files.write_json(a.out / files.PHASES, {"machine": machine, **measured})


if __name__ == "__main__":
    main()
