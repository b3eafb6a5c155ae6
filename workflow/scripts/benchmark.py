"""Time all methods side by side, prompt by prompt; what was measured before is kept, so that a killed run goes on."""

import argparse
import json
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from dynatree import code_checksums, decoding, files, plugins, settings
from dynatree.commands import options
from dynatree.costs.calibration import COSTS, STEPS, Calibration
from dynatree.data import model_sources
from dynatree.data.documents import write_table
from dynatree.data.prompts import Prompt, choose
from dynatree.data.splits import EVALUATION, TUNING, read_tokens
from dynatree.engine import checkpoint, kept
from dynatree.engine.machine import describe_machine, set_threads
from dynatree.errors import reported
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import audit, benchmark, draft_gguf, llama_cpp, runs
from dynatree.measuring.clock import alone
from dynatree.tables import comparison, metrics


def knobs_of(method: dict[str, Any]) -> dict[str, Any]:
    """The decoder's own, of what params.yaml says of a method."""
    return {key: value for key, value in method.items() if key not in ("decoder", "reads")}


def drafts(method: dict[str, Any]) -> bool:
    """Whether it makes use of a drafter. llama.cpp's ways, which are no method of params.yaml, are not told."""
    if "decoder" not in method:
        return False
    needs = plugins.load("decoding", method["decoder"]).Decoder.needs(knobs_of(method))
    return bool(needs.drafter != "unused")


def named(prompt: Prompt) -> str:
    """What records of a prompt are called: another text of this id, as after a change of the clean-up, has its own."""
    return f"{prompt.prompt_id.replace('/', '_')}-{files.digest(prompt.ids)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.models(parser)
    options.machine(parser)
    parser.add_argument("--calibration", type=Path, help="folder")
    parser.add_argument("--features", type=Path, help="model folder of a drafter that reads, for methods that do")
    parser.add_argument("--features-calibration", type=Path, help="folder of what was measured with it")
    parser.add_argument("--methods", required=True, help="JSON object: name to decoder and knobs, as in params.yaml")
    parser.add_argument("--grids", required=True, help="JSON object: name to knobs and the values to try")
    parser.add_argument("--texts", required=True, help="JSON object: name of a kind of text to options of generations")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="tokens.parquet of each data set")
    parser.add_argument("--start", nargs="+", required=True, help="where prompts begin in each: body or interior")
    parser.add_argument("--prompts", type=int, required=True, help="a data set")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--output-tokens", type=int, required=True)
    parser.add_argument("--repeated", nargs="*", default=[], help="methods whose slowest prompt is timed again")
    parser.add_argument("--repeats", type=int, required=True, help="of that prompt")
    parser.add_argument("--left-out", nargs="*", default=[], help="methods that read, where no drafter does: named")
    parser.add_argument("--tuning-prompts", type=int, required=True, help="a data set")
    parser.add_argument("--tuning-output-tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--source", help="JSON object: where the target comes from; llama.cpp reads its GGUF file")
    parser.add_argument("--cache", type=Path, help="folder of downloads, for that file")
    parser.add_argument("--llama-cpp", default="{}", help="JSON object: its ways to knobs and the values to try")
    parser.add_argument("--costs", type=Path, nargs="*", default=[], help="costs.json of our formats, beside its own")
    parser.add_argument("--costs-out", type=Path, help="Parquet table of these to write")
    parser.add_argument(
        "--decoding", type=Path, nargs="+", required=True, help="checksums of the library files that decode"
    )
    parser.add_argument("--records", type=Path, required=True, help="folder of what was measured")
    parser.add_argument("--out", type=Path, required=True, help="Parquet table to write")
    a = parser.parse_args()
    with reported():
        for name in a.left_out:
            print(f"benchmark: {name} left out: it reads, and the pair has no `features`", file=sys.stderr)
        threads = set_threads(a.threads)
        documents = {path.stem: read_tokens(path) for path in a.tokens}
        starts = dict(zip(documents, a.start, strict=True))

        def prompts(count: int, output_tokens: int, split: str) -> list[Prompt]:
            sizes = (count, a.prompt_tokens, output_tokens, a.seed)
            chosen = [choose(documents[name], name, *sizes, starts[name], split) for name in documents]
            # Data sets by turns: what is there of a benchmark that was stopped is of all of them.
            return [prompt for turn in zip(*chosen, strict=True) for prompt in turn]

        evaluated = prompts(a.prompts, a.output_tokens, EVALUATION)
        # Of each prompt its place in its data set: whichever others there are.
        keys = [place // len(documents) for place in range(len(evaluated))]
        tuning = prompts(a.tuning_prompts, a.tuning_output_tokens, TUNING)
        machine = describe_machine(a.dtype, a.device)
        # By whether the drafter reads the target's states.
        option = {False: "--calibration", True: "--features-calibration"}
        beside = {False: (a.drafter, a.calibration), True: (a.features, a.features_calibration)}
        beside = {reads: given for reads, given in beside.items() if given[0]}
        folders = {reads: {"target": a.target, "drafter": drafter} for reads, (drafter, _) in beside.items()}
        fingerprints = {reads: checkpoint.fingerprints(pair) for reads, pair in folders.items()}
        measured = [folder for _, folder in beside.values() if folder]
        calibrations = {
            reads: Calibration.read(folder, fingerprints[reads], machine) if folder else None
            for reads, (_, folder) in beside.items()
        }
        # By another machine's costs a policy grows other trees than it would by this one's.
        weighed = {option[reads]: known.costs.machine for reads, known in calibrations.items() if known}
        metrics.same_machine({"this machine": machine} | weighed)
        pairs = {reads: kept.pair(pair, a.dtype, a.device) for reads, pair in folders.items()}
        target = pairs[False].target

        def build(method: dict[str, Any]) -> decoding.Decoder:
            reads = method.get("reads", False)
            return decoding.build(*pairs[reads], method["decoder"], knobs_of(method), calibrations[reads])

        gguf = model_sources.gguf_file(model_sources.parse(json.loads(a.source)), a.cache) if a.source else None
        sizes = (json.loads(a.llama_cpp), a.prompt_tokens + a.output_tokens, threads)
        ways = llama_cpp.Ways(gguf, a.drafter, a.cache, *sizes) if gguf else None
        for given in json.loads(a.texts).values() if ways else ():
            llama_cpp.check(GenerationOptions(max_new_tokens=a.output_tokens, **given))
        # What the numbers depend on: records of anything else lie in another folder.
        read = [*(folder / name for folder in measured for name in (COSTS, STEPS)), *a.decoding]
        read += [Path(module) for module in (__file__, benchmark.__file__, llama_cpp.__file__, draft_gguf.__file__)]
        asked = [a.methods, a.grids, a.output_tokens, a.prompt_tokens, a.seed, [prompt.ids for prompt in tuning]]
        asked += [
            a.tuning_output_tokens,
            [*fingerprints.values()],
            [code_checksums.checksum(path) for path in read],
            machine,
        ]
        asked += [a.llama_cpp, ways and ways.engine.version]
        home = a.records / files.digest(asked)
        files.write_json(home / "machine.json", machine)
        for folder, name in product(measured, (COSTS, STEPS)):
            kept_there = home / ("features" if folder == a.features_calibration else ".") / "calibration" / name
            if not kept_there.is_file():
                files.write_json(kept_there, files.read_json(folder / name))
        files.write_json(a.records / files.CURRENT, home.name)
        if ways:
            path = home / "forwards.json"
            if not path.is_file():
                with alone():
                    files.write_json(path, ways.engine.forwards().model_dump())
            costs = metrics.llama_cpp_costs(files.read_json(path), machine, a.costs)
            write_table(a.costs_out, metrics.table(a.costs_out.stem, costs))
        tolerance = audit.tolerance(target, next(iter(documents.values())))
        theirs = (llama_cpp.NAME, *ways.grids) if ways else ()
        table = []
        for text, given in json.loads(a.texts).items():
            methods, wanted = json.loads(a.methods), GenerationOptions(max_new_tokens=a.output_tokens, **given)
            # A further kind of text leaves the records of the others as they are.
            tuned = home / f"tuned_{text}-{files.digest(given)}"
            shorter = wanted.model_copy(update={"max_new_tokens": a.tuning_output_tokens})
            tried = (target, build, tuning, shorter)
            edges: dict[str, list[str]] = {}
            for name, grid in json.loads(a.grids).items():
                print(f"benchmark: {text}, tuning {name}", file=sys.stderr)
                found = benchmark.tuned(tuned / f"{name}.json", methods[name], grid, *tried)
                methods[name], edges[name] = found["best"], found["at_the_edge_of"]
            decoders = {name: build(method) for name, method in methods.items()}
            if ways:
                decoders[llama_cpp.NAME] = ways.plain
                for name, grid in ways.grids.items():
                    print(f"benchmark: {text}, tuning {name}", file=sys.stderr)
                    path, built = tuned / f"{name}.json", partial(ways.build, name)
                    found = benchmark.tuned(path, {}, grid, target, built, *tried[2:])
                    methods[name], edges[name] = found["best"], found["at_the_edge_of"]
                    decoders[name] = built(found["best"])
            folder, rows, warm = home / f"{text}-{files.digest([methods, given])}", [], False
            for place, prompt in enumerate(evaluated):
                path, keyed = folder / f"{named(prompt)}.json", wanted.keyed([keys[place]])
                if not path.is_file():
                    with alone():
                        if not warm:
                            for decoder in decoders.values():
                                runs.warm_up(decoder, [prompt.ids], keyed)
                            warm = True
                        # Every data set begins with every method.
                        turn = place // len(documents)
                        measured = benchmark.paired(target, decoders, prompt, keyed, turn, tolerance)
                    files.write_json(path, measured)
                rows += files.read_json(path)
                print(f"benchmark: {text}, {place + 1} of {len(evaluated)} prompts", file=sys.stderr)
            again = {}
            for method in a.repeated:
                name = comparison.slowest(rows, method)
                place = next(place for place, prompt in enumerate(evaluated) if prompt.prompt_id == name)
                prompt, keyed = evaluated[place], wanted.keyed([keys[place]])
                path = folder / "again" / method / f"{named(prompt)}-{a.repeats}.json"
                if not path.is_file():
                    with alone():
                        measured = benchmark.repeated(target, decoders, method, prompt, keyed, a.repeats)
                        files.write_json(path, measured)
                again[method] = files.read_json(path)
            for row in comparison.summary(text, rows, again, theirs or comparison.BASELINES):
                method = methods.get(row["method"], {})
                row |= {"kind": metrics.kind_of_text(given), "settings": settings.write(knobs_of(method))}
                row |= {"edges": edges.get(row["method"])}
                row |= {"drafter": folders[method.get("reads", False)]["drafter"].name if drafts(method) else None}
                table.append(row)
        if ways:
            best = comparison.fastest(table, theirs)
            ours = {"dtype": a.dtype, "weight_bytes": sum(target.weights().values())}
            its = {"dtype": None, "weight_bytes": gguf.stat().st_size}
            table = [
                row | (its if row["method"] in theirs else ours) | {"of_fastest": best[row["text"]] == row["baseline"]}
                for row in table
            ]
        write_table(a.out, metrics.table(a.out.stem, table))


if __name__ == "__main__":
    main()
