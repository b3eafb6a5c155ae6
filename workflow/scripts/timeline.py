"""Time the phases of one method over the first prompt of a data set, by an instrumented pass: phases.json."""

import argparse
import json
from pathlib import Path

from dynatree import files, measure, options, phases, provenance
from dynatree.errors import readable, reported
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
        with readable("--knobs"):
            knobs = json.loads(a.knobs)
        models, decoder = measure.load_all(options.folders(a), a.calibration, a.decoder, knobs, a.dtype, a.device)
        machine = provenance.describe(a.dtype, a.device)
        measured = phases.record(models, decoder, prompt, a.output_tokens)
        files.write_json(a.out / files.PHASES, {"machine": machine, **measured})


if __name__ == "__main__":
    main()
