"""Time all methods side by side, prompt by prompt; what was measured before is kept, so that a killed run goes on."""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from dynatree import audit, benchmark, files, measure, metrics, model, options, provenance
from dynatree.calibration import COSTS, STEPS, Calibration
from dynatree.errors import reported
from dynatree.processors import Processors
from dynatree.text.documents import write_table
from dynatree.text.prompts import choose
from dynatree.text.splits import read_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.models(parser)
    options.machine(parser)
    parser.add_argument("--calibration", type=Path, required=True, help="folder")
    parser.add_argument("--methods", required=True, help="JSON object: name to decoder and knobs, as in params.yaml")
    parser.add_argument("--texts", required=True, help="JSON object: name of a kind of text to logits processors")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="tokens.parquet of each data set")
    parser.add_argument("--start", nargs="+", required=True, help="where prompts begin in each: body or interior")
    parser.add_argument("--prompts", type=int, required=True, help="a data set")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--output-tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--records", type=Path, required=True, help="folder of what was measured")
    parser.add_argument("--out", type=Path, required=True, help="Parquet table to write")
    a = parser.parse_args()
    with reported():
        provenance.set_threads(a.threads)
        documents = {path.stem: read_tokens(path) for path in a.tokens}
        prompts = [
            prompt
            for (name, found), start in zip(documents.items(), a.start, strict=True)
            for prompt in choose(found, name, a.prompts, a.prompt_tokens, a.output_tokens, a.seed, start)
        ]
        folders = options.folders(a)
        fingerprints = {role: model.fingerprint(folder) for role, folder in folders.items()}
        machine = provenance.describe(a.dtype, a.device)
        calibration = Calibration.read(a.calibration, fingerprints, machine)
        loaded = {role: model.load(folder, a.dtype, a.device) for role, folder in folders.items()}
        target = loaded["target"]
        methods = json.loads(a.methods)
        decoders = {
            name: measure.build(target, loaded.get("drafter"), knobs.pop("decoder"), knobs, calibration)
            for name, knobs in methods.items()
        }
        tolerance = audit.tolerance(target, next(iter(documents.values())))
        # What the numbers depend on: records of anything else lie in another folder.
        calibrated = [files.sha256(a.calibration / name) for name in (COSTS, STEPS)]
        asked = [a.methods, a.texts, a.output_tokens, a.prompt_tokens, fingerprints, calibrated, machine]
        home = a.records / hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        files.write_json(home / "machine.json", machine)
        table = []
        for text, given in json.loads(a.texts).items():
            rows, warm = [], False
            for turn, prompt in enumerate(prompts):
                path = home / text / f"{prompt.prompt_id.replace('/', '_')}.json"
                if not path.is_file():
                    with measure.alone():
                        if not warm:
                            for decoder in decoders.values():
                                measure.warm_up(decoder, prompt.ids, a.output_tokens)
                            warm = True
                        measured = benchmark.paired(
                            target, decoders, prompt, a.output_tokens, Processors(**given), turn, tolerance
                        )
                    files.write_json(path, measured)
                rows += files.read_json(path)
                print(f"benchmark: {text}, {turn + 1} of {len(prompts)} prompts", file=sys.stderr)
            table += benchmark.summary(text, rows)
        write_table(a.out, metrics.table("benchmark", table))


if __name__ == "__main__":
    main()
