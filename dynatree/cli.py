"""The library by hand: decode, show a tree, measure costs, make a drafter, say how good one is, explain the tables."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dynatree import __version__, files, options, params, plugins, schema
from dynatree.commands import calibrate, distil, drafter_report, quieten, request, tree
from dynatree.errors import UserError, reported
from dynatree.knobs import checked

_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"

_GENERATE = """\
Decode a prompt greedily with one method. The output of every method equals that of `autoregressive`; what differs
is the number of target forwards, and the time. Without --json the text streams as it is committed: accepted draft
tokens in green, the target's own plain. Several prompts are decoded together where the method can, else one after the
other; their texts come under headings when all are done.

examples:
  dynatree generate --target smollm2 --drafter smollm2-drafter --method dynatree --prompt "The tree" --max-new-tokens 60
  dynatree generate --target ./my-model --method prompt_lookup --prompt-file essay.txt --max-new-tokens 200 --json
  dynatree generate --target smollm2 --drafter smollm2-drafter --method dynatree --set depth=4 --set threshold=0.1 \\
      --prompt-ids "504 2670" --max-new-tokens 40
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `dynatree`."""
    parser = argparse.ArgumentParser(prog="dynatree", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser(
        "generate",
        help="decode prompts",
        description=_GENERATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate.add_argument(
        "--target", required=True, metavar="PATH_OR_NAME", help="model folder, or a model of params.yaml"
    )
    generate.add_argument(
        "--drafter",
        metavar="PATH_OR_NAME",
        help="the same; without one dynatree looks up in the text alone",
    )
    generate.add_argument("--method", required=True, metavar="NAME", help="a method of params.yaml, such as dynatree")
    prompt = generate.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated, as the next two")
    prompt.add_argument("--prompt-file", action="append", metavar="FILE", help="UTF-8 text")
    prompt.add_argument("--prompt-ids", action="append", metavar='"1 2 3"', help="token ids")
    generate.add_argument("--max-new-tokens", type=int, required=True, metavar="N")
    generate.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the method, such as depth=4"
    )
    generate.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="1: none")
    generate.add_argument("--no-repeat-ngram", type=int, default=0, metavar="N", help="no N-gram twice; 0: any")
    generate.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="measured costs, for dynatree; default: those beside the models, if they were measured for them",
    )
    options.machine(generate)
    generate.add_argument("--ignore-eos", action="store_true", help="go on behind the end-of-sequence token")
    generate.add_argument("--json", action="store_true", help="print one JSON object (of several prompts a list) only")
    generate.set_defaults(run=_generate)
    report = commands.add_parser("report", help="explain the result tables")
    report.add_argument("--schema", action="store_true", required=True, help="print the columns of results/*.parquet")
    report.set_defaults(run=lambda _: print(schema.describe()))
    others = [module.register(commands.add_parser, _folder) for module in (tree, calibrate, distil, drafter_report)]
    for each in (parser, generate, report, *others):
        each.error = _refuse  # argparse would print the usage above the error
    with reported():
        parsed = parser.parse_args(arguments)
        parsed.run(parsed)


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _folder(name: str, known: params.Params) -> Path:
    """The model folder that `name` means: a path, or a model of params.yaml that the workflow has built."""
    if Path(name).is_dir():
        return Path(name)
    names = [model for pair in known.pairs for model in (pair, files.drafter_of(pair))]
    if name not in names:
        raise UserError(f"model: {name!r} is neither a folder nor a model of params.yaml ({', '.join(names)})")
    homes = [Path(os.environ["DYNATREE_MODELS"])] if "DYNATREE_MODELS" in os.environ else []
    homes += [Path("models"), Path(__file__).resolve().parent.parent / "models"]
    found = next((home / name for home in homes if (home / name / files.MANIFEST).is_file()), None)
    if found is None:
        raise UserError(
            f"model {name!r} is not built yet: run `snakemake --cores 1 models/{name}/manifest.json` (or `make all`) "
            "in a checkout of the project, and call dynatree there or set DYNATREE_MODELS to its models folder"
        )
    return found


def _generate(arguments: argparse.Namespace) -> None:
    known = params.read()
    if arguments.method not in known.methods:
        raise UserError(f"--method: no {arguments.method!r}; choose one of {', '.join(known.methods)}")
    method = known.methods[arguments.method]
    knobs = request.settings(method, arguments.set)
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: {arguments.max_new_tokens}; give at least 1")
    decoder_class = plugins.load("decoding", method.decoder).Decoder
    from dynatree import checks

    checks.check_method(arguments.method, method.decoder, knobs)
    needs = decoder_class.needs(knobs)
    if needs.drafter == "required" and not arguments.drafter:
        raise UserError(f"--drafter: method {arguments.method} needs one; give a model folder or name")
    prompts = [request.prompt_ids(text) for text in arguments.prompt_ids or []]
    texts = [request.checked_text(text) for text in arguments.prompt or []]
    texts += [request.file_text(path) for path in arguments.prompt_file or []]

    # Imported late, so that errors in the arguments come at once.
    from dynatree import measure, provenance
    from dynatree.processors import Processors

    processors = checked(
        "--repetition-penalty, --no-repeat-ngram",
        lambda given: Processors(**given),
        {"repetition_penalty": arguments.repetition_penalty, "no_repeat_ngram": arguments.no_repeat_ngram},
    )
    quieten()
    provenance.set_threads(arguments.threads)
    folders = {"target": _folder(arguments.target, known)}
    if needs.drafter != "unused" and arguments.drafter:
        folders["drafter"] = _folder(arguments.drafter, known)
    calibration = (arguments.calibration or request.calibration(folders)) if needs.calibration else None
    target, decoder = measure.load(folders, calibration, method.decoder, knobs, arguments.dtype, arguments.device)
    for text in texts:
        if target.tokenizer is None:
            raise UserError(f"model {arguments.target!r} has no tokenizer; give --prompt-ids")
        prompts.append(target.tokenizer.encode(text))
    for ids in prompts:
        target.check_prompt(ids, arguments.max_new_tokens)
    measure.warm_up(decoder, prompts[0], arguments.max_new_tokens)
    eos_ids = frozenset() if arguments.ignore_eos else target.eos_ids
    stream = None if arguments.json or len(prompts) > 1 else _Stream(target.tokenizer)
    if len(prompts) == 1:
        traces = [decoder.decode(prompts[0], arguments.max_new_tokens, eos_ids, stream, processors=processors)]
    elif hasattr(decoder, "decode_batch"):
        traces = decoder.decode_batch(prompts, arguments.max_new_tokens, eos_ids, processors=processors)
    else:
        traces = [decoder.decode(ids, arguments.max_new_tokens, eos_ids, processors=processors) for ids in prompts]
    results = [
        _result(arguments.method, knobs, ids, trace, target.tokenizer)
        for ids, trace in zip(prompts, traces, strict=True)
    ]
    if arguments.json:
        print(json.dumps(results[0] if len(results) == 1 else results))
        return
    if stream is not None:
        stream.close()
    for number, (result, trace) in enumerate(zip(results, traces, strict=True), start=1):
        heading = "" if stream is not None else f"{number}: "
        if heading:
            print(f"== prompt {number} of {len(prompts)} ==")
            print(" ".join(map(str, trace.output)) if result["text"] is None else result["text"])
        rate = len(trace.output) / trace.seconds
        print(
            f"{heading}{len(trace.output)} tokens in {trace.seconds:.2f} s ({rate:.1f} tokens/s), "
            f"{result['rounds']} rounds, {result['target_forwards']} target forwards, "
            f"{result['accepted']} of {result['drafted']} drafted accepted",
            file=sys.stderr,
        )


def _result(method: str, knobs: dict[str, Any], prompt: list[int], trace: Any, tokenizer: Any) -> dict[str, Any]:
    """What --json prints of one prompt."""
    return {
        "method": method,
        "parameters": knobs,
        "prompt_ids": prompt,
        "output_ids": trace.output,
        "text": tokenizer.decode(trace.output) if tokenizer else None,
        "seconds": trace.seconds,
        "ttft_seconds": trace.commits[0],
        "rounds": len(trace.rounds),
        "target_forwards": trace.target_forwards,
        "draft_forwards": trace.draft_forwards,
        "drafted": sum(r.drafted for r in trace.rounds),
        "accepted": sum(r.accepted for r in trace.rounds),
    }


class _Stream:
    """Prints committed tokens at once; text whose last character is still incomplete waits for its next token."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def __call__(self, tokens: list[int], accepted: int) -> None:
        for place, token in enumerate(tokens):
            self._ids.append(token)
            if self._tokenizer is None:
                piece = f"{token} "
            else:
                text = self._tokenizer.decode(self._ids)
                if text.endswith("\ufffd"):
                    continue
                piece, self._shown = text[len(self._shown) :], text
            drafted = self._colour and place < accepted
            sys.stdout.write(f"{_GREEN}{piece}{_PLAIN}" if drafted else piece)
        sys.stdout.flush()

    def close(self) -> None:
        """Print what still waits, which the output's limit cut short, and end the line."""
        rest = self._tokenizer.decode(self._ids)[len(self._shown) :] if self._tokenizer is not None else ""
        print(rest)


if __name__ == "__main__":
    main()
