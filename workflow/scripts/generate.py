"""Run one method over the first prompts of a data set: outputs (deterministic), timings, and the outputs' audit."""

import argparse
import json
from pathlib import Path

from dynatree import files
from dynatree.commands import options
from dynatree.data.prompts import read_prompts
from dynatree.data.splits import read_tokens
from dynatree.decoding import comparable
from dynatree.engine.machine import describe_machine, set_threads
from dynatree.errors import UserError, readable, reported
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import audit, loading, runs
from dynatree.measuring.clock import alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.method(parser)
    options.machine(parser)
    parser.add_argument("--tokens", type=Path, required=True, help="tokens.parquet: its tuning split sets tolerances")
    parser.add_argument("--count", type=int, required=True, help="prompts to take")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch", type=options.at_least_one, default=1, metavar="N", help="prompts decoded together")
    parser.add_argument("--options", default="{}", help="JSON object: options of the experiment's generations")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    a = parser.parse_args()
    with reported():
        set_threads(a.threads)
        prompts = read_prompts(a.prompts)[: a.count]
        if len(prompts) < a.count:
            raise UserError(f"{a.prompts}: {len(prompts)} prompts, {a.count} asked for; choose them again")
        with readable("--knobs"):
            knobs = json.loads(a.knobs)
        with readable("--options"):
            given = json.loads(a.options)
            wanted = GenerationOptions(max_new_tokens=a.output_tokens, **given)
        folders = options.folders(a)
        asked = (folders, a.calibration, a.decoder, knobs, a.dtype, a.device, a.batch)
        (target, _), decoder = loading.load(*asked)
        outputs, timings = runs.generate(target, decoder, prompts, wanted, a.repeats, a.batch)
        # Behind the last timing, and not beside another job's.
        with alone():
            tolerance = audit.tolerance(target, read_tokens(a.tokens))
            audited = audit.records(target, prompts, outputs, tolerance, wanted, comparable(decoder, wanted))
        machine = describe_machine(a.dtype, a.device)
        drafter = folders["drafter"].name if "drafter" in folders else None
        timed = {"machine": machine, "options": given, "drafter": drafter, "timings": timings}
        files.write_json(a.out / files.TIMINGS, timed)
        files.write_jsonl(a.out / files.AUDIT, audited)
        files.write_jsonl(a.out / files.OUTPUTS, outputs)


if __name__ == "__main__":
    main()
