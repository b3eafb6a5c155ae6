"""Time all methods side by side, prompt by prompt; what was measured before is kept, so that a killed run goes on."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dynatree import audit, benchmark, files, loading, measure, metrics, options, provenance
from dynatree.calibration import COSTS, STEPS, Calibration
from dynatree.errors import reported
from dynatree.processors import Processors
from dynatree.text.documents import write_table
from dynatree.text.prompts import Prompt, choose
from dynatree.text.splits import EVALUATION, TUNING, read_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.models(parser)
    options.machine(parser)
    parser.add_argument("--calibration", type=Path, required=True, help="folder")
    parser.add_argument("--methods", required=True, help="JSON object: name to decoder and knobs, as in params.yaml")
    parser.add_argument("--grids", required=True, help="JSON object: name to knobs and the values to try")
    parser.add_argument("--texts", required=True, help="JSON object: name of a kind of text to logits processors")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="tokens.parquet of each data set")
    parser.add_argument("--start", nargs="+", required=True, help="where prompts begin in each: body or interior")
    parser.add_argument("--prompts", type=int, required=True, help="a data set")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--output-tokens", type=int, required=True)
    parser.add_argument("--repeated", nargs="*", default=[], help="methods whose slowest prompt is timed again")
    parser.add_argument("--repeats", type=int, required=True, help="of that prompt")
    parser.add_argument("--tuning-prompts", type=int, required=True, help="a data set")
    parser.add_argument("--tuning-output-tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--decoding", type=Path, nargs="+", required=True, help="checksums of the library files that decode"
    )
    parser.add_argument("--records", type=Path, required=True, help="folder of what was measured")
    parser.add_argument("--out", type=Path, required=True, help="Parquet table to write")
    a = parser.parse_args()
    with reported():
        provenance.set_threads(a.threads)
        documents = {path.stem: read_tokens(path) for path in a.tokens}
        starts = dict(zip(documents, a.start, strict=True))

        def prompts(count: int, output_tokens: int, split: str) -> list[Prompt]:
            sizes = (count, a.prompt_tokens, output_tokens, a.seed)
            chosen = [choose(documents[name], name, *sizes, starts[name], split) for name in documents]
            # Data sets by turns: what is there of a benchmark that was stopped is of all of them.
            return [prompt for turn in zip(*chosen, strict=True) for prompt in turn]

        evaluated = prompts(a.prompts, a.output_tokens, EVALUATION)
        tuning = prompts(a.tuning_prompts, a.tuning_output_tokens, TUNING)
        folders = options.folders(a)
        fingerprints = {role: loading.fingerprint(folder) for role, folder in folders.items()}
        machine = provenance.describe(a.dtype, a.device)
        calibration = Calibration.read(a.calibration, fingerprints, machine)
        loaded = loading.load_pair(folders, a.dtype, a.device)
        target = loaded["target"]

        def build(method: dict[str, Any]) -> Any:
            knobs = {key: value for key, value in method.items() if key != "decoder"}
            return measure.build(target, loaded.get("drafter"), method["decoder"], knobs, calibration)

        # What the numbers depend on: records of anything else lie in another folder.
        read = (a.calibration / COSTS, a.calibration / STEPS, *a.decoding, Path(__file__), Path(benchmark.__file__))
        asked = [a.methods, a.grids, a.texts, a.output_tokens, a.prompt_tokens, a.seed, len(tuning)]
        asked += [a.tuning_output_tokens, fingerprints, [files.sha256(path) for path in read], machine]
        home = a.records / files.digest(asked)
        files.write_json(home / "machine.json", machine)
        for path in (a.calibration / COSTS, a.calibration / STEPS):
            files.write_json(home / "calibration" / path.name, files.read_json(path))
        files.write_json(a.records / files.CURRENT, home.name)
        tolerance = audit.tolerance(target, next(iter(documents.values())))
        table = []
        for text, given in json.loads(a.texts).items():
            methods, processors = json.loads(a.methods), Processors(**given)
            for name, grid in json.loads(a.grids).items():
                print(f"benchmark: {text}, tuning {name}", file=sys.stderr)
                path = home / f"tuned_{text}" / f"{name}.json"
                methods[name] = benchmark.tuned(
                    path, methods[name], grid, target, build, tuning, a.tuning_output_tokens, processors
                )
            decoders = {name: build(method) for name, method in methods.items()}
            rows, warm = [], False
            for turn, prompt in enumerate(evaluated):
                path = home / f"{text}-{files.digest(methods)}" / f"{prompt.prompt_id.replace('/', '_')}.json"
                if not path.is_file():
                    with measure.alone():
                        if not warm:
                            for decoder in decoders.values():
                                measure.warm_up(decoder, [prompt.ids], a.output_tokens)
                            warm = True
                        measured = benchmark.paired(
                            target, decoders, prompt, a.output_tokens, processors, turn, tolerance
                        )
                    files.write_json(path, measured)
                rows += files.read_json(path)
                print(f"benchmark: {text}, {turn + 1} of {len(evaluated)} prompts", file=sys.stderr)
            again = {}
            for method in a.repeated:
                name = benchmark.slowest(rows, method)
                prompt = next(prompt for prompt in evaluated if prompt.prompt_id == name)
                file = f"{name.replace('/', '_')}-{a.repeats}.json"
                path = home / f"{text}-{files.digest(methods)}" / "again" / method / file
                if not path.is_file():
                    with measure.alone():
                        sizes = (a.output_tokens, processors, a.repeats)
                        files.write_json(path, benchmark.repeated(target, decoders, method, prompt, *sizes))
                again[method] = files.read_json(path)
            table += benchmark.summary(text, rows, again)
        write_table(a.out, metrics.table("benchmark", table))


if __name__ == "__main__":
    main()
