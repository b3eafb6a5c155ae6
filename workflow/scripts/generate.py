"""Run one method over the first prompts of a data set, timed: outputs.jsonl (deterministic) and timings.json."""

import argparse
import json
from pathlib import Path

from dynatree import files, measure, model, provenance
from dynatree.errors import reported
from dynatree.text.prompts import read_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="model folder")
    parser.add_argument("--drafter", type=Path, help="model folder, for the decoders that need one")
    parser.add_argument("--decoder", required=True, help="a file of dynatree/decoding")
    parser.add_argument("--knobs", default="{}", help="JSON object: the decoder's knobs, as in params.yaml")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.parquet")
    parser.add_argument("--count", type=int, required=True, help="prompts to take")
    parser.add_argument("--output-tokens", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--reference-seconds", type=float, required=True, help="of plain steps around each prompt")
    parser.add_argument("--instrumented", action="store_true", help="time the phases of one prompt: phases.json")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="default: physical cores")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    a = parser.parse_args()
    with reported():
        provenance.set_threads(a.threads)
        prompts = read_prompts(a.prompts)[: a.count]
        target = model.load(a.target, a.dtype, a.device)
        drafter = model.load(a.drafter, a.dtype, a.device) if a.drafter else None
        decoder = measure.build(target, drafter, a.decoder, json.loads(a.knobs))
        if a.instrumented:
            files.write_json(a.out / files.PHASES, measure.phases(target, decoder, prompts[0], a.output_tokens))
            return
        outputs, timings = measure.generate(target, decoder, prompts, a.output_tokens, a.repeats, a.reference_seconds)
        machine = provenance.describe(a.dtype, a.device)
        files.write_json(a.out / files.TIMINGS, {"machine": machine, "timings": timings})
        files.write_jsonl(a.out / files.OUTPUTS, outputs)


if __name__ == "__main__":
    main()
