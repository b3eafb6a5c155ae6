"""Time llama.cpp with 4-bit weights on the benchmark's prompts, in the same plain steps; what was measured is kept."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from dynatree import benchmark, files, loading, measure, metrics, options, provenance, quantised, weights
from dynatree.audit import repeated
from dynatree.errors import UserError, readable, reported
from dynatree.processors import PLAIN, Processors
from dynatree.text.documents import write_table
from dynatree.text.prompts import Prompt, at, choose
from dynatree.text.splits import TUNING, read_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="model folder")
    options.machine(parser)
    parser.add_argument("--source", required=True, help="JSON object: where the target comes from, as in params.yaml")
    parser.add_argument("--cache", type=Path, required=True, help="folder of downloads")
    parser.add_argument("--grid", required=True, help="JSON object: values of prompt lookup's knobs to try")
    parser.add_argument("--texts", required=True, help="JSON object: kinds of text of the benchmark, as in params.yaml")
    parser.add_argument("--benchmark", type=Path, required=True, help="folder of the benchmark's records")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="tokens.parquet of each data set")
    parser.add_argument("--start", nargs="+", required=True, help="where prompts begin in each: body or interior")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--output-tokens", type=int, required=True)
    parser.add_argument("--tuning-prompts", type=int, required=True, help="a data set")
    parser.add_argument("--tuning-output-tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--records", type=Path, required=True, help="folder of what was measured")
    parser.add_argument("--out", type=Path, required=True, help="Parquet table to write")
    a = parser.parse_args()
    with reported():
        with readable("source"):
            source = weights.parse(json.loads(a.source))
        file = weights.gguf_file(source, a.cache)
        plain = [name for name, given in json.loads(a.texts).items() if Processors(**given) == PLAIN]
        if not plain:
            raise UserError(f"benchmark.texts: {a.texts}; one without logits processors is compared with llama.cpp")
        text = plain[0]
        provenance.set_threads(a.threads)
        documents = {path.stem: read_tokens(path) for path in a.tokens}
        target = loading.load_pair({"target": a.target}, a.dtype, a.device)["target"]
        own = own_records(a.benchmark, text)
        sizes = (a.tuning_prompts, a.prompt_tokens, a.tuning_output_tokens, a.seed)
        starts = dict(zip(documents, a.start, strict=True))
        tuning = [p for name in documents for p in choose(documents[name], name, *sizes, starts[name], TUNING)]

        def build(knobs: dict[str, Any]) -> quantised.Decoder:
            return quantised.Decoder(file, a.prompt_tokens + a.output_tokens, torch.get_num_threads(), **knobs)

        machine = provenance.describe(a.dtype, a.device)
        asked = [a.source, a.grid, a.prompt_tokens, a.output_tokens, a.seed, len(tuning), a.tuning_output_tokens]
        asked += [quantised.version(), files.sha256(Path(__file__)), machine]
        home = a.records / files.digest(asked)
        files.write_json(home / "machine.json", machine)
        files.write_json(a.records / files.CURRENT, home.name)
        lookup = benchmark.tuned(
            home / "tuned.json", {}, json.loads(a.grid), target, build, tuning, a.tuning_output_tokens, PLAIN
        )
        decoders = {quantised.PLAIN_NAME: build({}), quantised.LOOKUP_NAME: build(lookup)}
        outputs = {row["prompt_id"]: row["output_ids"] for row in own if row["method"] == benchmark.BASELINES[0]}
        rows = []
        for place, name in enumerate(outputs):
            prompt = at(documents[name.partition("/")[0]], name, a.prompt_tokens)
            path = home / f"{name.replace('/', '_')}.json"
            if not path.is_file():
                files.write_json(path, measured(target, decoders, prompt, a.output_tokens, outputs[name]))
            rows += files.read_json(path)
            print(f"quantised: {place + 1} of {len(outputs)} prompts", file=sys.stderr)
        table = benchmark.summary(text, [*own, *rows], {}, tuple(decoders))
        read = {True: file.stat().st_size, False: (a.target / files.WEIGHTS).stat().st_size}
        table = [row | {"weight_bytes": read[row["method"] in decoders]} for row in table]
        write_table(a.out, metrics.table("quantised", table))


def own_records(folder: Path, text: str) -> list[dict[str, Any]]:
    """The benchmark's records of a kind of `text`. Raises UserError if there are none."""
    home = folder / files.read_json(folder / files.CURRENT)
    paths = sorted(home.glob(f"{text}-*/*.json"))
    if not paths:
        raise UserError(f"{home}: no records of {text} text; run `make benchmark` first")
    return [row for path in paths for row in files.read_json(path)]


def measured(target: Any, decoders: dict[str, Any], prompt: Prompt, tokens: int, plain: list[int]) -> list[Any]:
    """A record a decoder on `prompt`; `plain` is the output of our plain loop."""
    with measure.alone():
        reference = measure.Reference(target)
        rows = []
        for name, decoder in decoders.items():
            measure.warm_up(decoder, [prompt.ids], tokens)
            rows.append(benchmark.run(target, decoder, reference, name, prompt, tokens, PLAIN))
    for row in rows:
        again = repeated(prompt.ids, row["output_ids"])
        row |= {"identical": row["output_ids"] == plain, "repetition": sum(again) / len(again)}
    return rows


if __name__ == "__main__":
    main()
