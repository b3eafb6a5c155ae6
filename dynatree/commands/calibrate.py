"""`dynatree calibrate`: what forwards of a pair cost on this machine, and how often drafted tokens are right."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynatree import files
from dynatree.commands import options
from dynatree.commands.arguments import check_out, check_texts, quieten
from dynatree.config import QUANTISED
from dynatree.errors import UserError
from dynatree.study import params

# What quantising costs is told in this file, over so many tokens of the text, in windows of so many.
PERPLEXITY = "perplexity.json"
_SCORED, _WINDOW = 2000, 512

_DESCRIPTION = """\
Measure, for the cost-aware policy of `dynatree`, what target and draft forwards over n tokens cost on this machine, and
how often drafted tokens are the target's choice along its continuations of a text. Let nothing else run meanwhile.
Of a quantised format (int8, int4) the text's perplexity is told as well, beside that in float32.
Without --text and --out some sentences are gone on from, and the result is kept in your cache folder, where other
commands and Python find it for these models, this format and this machine.

examples:
  dynatree calibrate --target smollm2 --drafter smollm2-drafter --dtype float32
  dynatree calibrate --target ./my-model --drafter ./my-drafter --text essays.txt --out ./my-costs
  dynatree generate --target ./my-model --drafter ./my-drafter --calibration ./my-costs --method dynatree ...
"""


# Of what is measured over a text: what each size is unless given, and what it says.
_SIZES: dict[str, tuple[int | list[int], str]] = {
    "prompts": (4, "prompts taken from each text"),
    "prompt_tokens": (128, "tokens of each prompt"),
    "output_tokens": (128, "tokens that the target goes on for after each prompt"),
    "contexts": ([64, 256, 1024], "time forwards after so many tokens"),
    "batches": ([1], "time forwards over so many prompts decoded together"),
    "repeats": (7, "how often each forward is timed"),
}


def register(
    add: Callable[..., argparse.ArgumentParser], find_model: Callable[[str, params.Params], Path]
) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add(
        "calibrate",
        help="measure costs for `dynatree`",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "--target", required=True, metavar="PATH_OR_NAME", help="model folder, or a model of params.yaml"
    )
    parser.add_argument("--drafter", metavar="PATH_OR_NAME", help="the drafter, named likewise")
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        metavar="PATH",
        help="text file, or a folder of *.txt, to measure on; with --out",
    )
    for name, (usual, what) in _SIZES.items():
        several: dict[str, Any] = {"nargs": "+"} if isinstance(usual, list) else {}
        shown = " ".join(map(str, usual)) if isinstance(usual, list) else usual
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=options.at_least_one,
            default=usual,
            metavar="N",
            help=f"{what} (default: {shown})",
            **several,
        )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"write costs.json, steps.json, batches.json, {PERPLEXITY} there; with --text",
    )
    options.machine(parser)
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def _run(arguments: argparse.Namespace, find_model: Callable[[str, params.Params], Path]) -> None:
    known = params.read()
    kept = arguments.text is None and arguments.out is None
    if kept:
        given = [name for name, (usual, _) in _SIZES.items() if getattr(arguments, name) != usual]
        if given:
            options_given = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(f"calibrate: {options_given} only with --text and --out; what is kept has sizes of its own")
    else:
        if arguments.text is None or arguments.out is None:
            raise UserError("calibrate: give both --text and --out, or neither")
        check_texts(arguments.text)
        check_out(arguments.out, folder=True)
    folders = {
        role: find_model(name, known)
        for role in ("target", "drafter")
        if (name := getattr(arguments, role)) is not None
    }

    if kept:
        _keep(arguments, folders)
        return

    # Imported late, so that errors in the arguments come at once.
    from dynatree.data.sources.text import token_ids
    from dynatree.engine.machine import set_threads
    from dynatree.engine.tokenizer import require_tokenizer
    from dynatree.measuring import calibrate, forward_times, perplexity

    quieten()
    set_threads(arguments.threads)
    tokenizer = require_tokenizer(folders["target"])
    prompts, documents = [], []
    for path in arguments.text:
        ids = token_ids(path, tokenizer.encode)
        documents.append(ids[: -(-_SCORED // len(arguments.text))])
        length, count = arguments.prompt_tokens, arguments.prompts
        if len(ids) < length * count:
            raise UserError(f"--text {path}: {len(ids)} tokens; {count} prompts of {length} need {length * count}")
        starts = [place * (len(ids) - length) // max(1, count - 1) for place in range(count)]
        prompts += [ids[start : start + length] for start in starts]
    sizes = (arguments.output_tokens, sorted(set(arguments.contexts)), arguments.repeats)
    machine = (arguments.dtype, arguments.device)
    measured = calibrate.pair(folders, prompts, *sizes, *machine)
    if {*arguments.batches} - {1}:
        measured = forward_times.with_batches(folders, measured, *sizes[1:], *machine, arguments.batches)
    measured.write(arguments.out)
    if arguments.dtype in QUANTISED:
        found = perplexity.of_formats(
            folders["target"], documents, _SCORED, _WINDOW, (arguments.dtype, "float32"), arguments.device
        )
        files.write_json(arguments.out / PERPLEXITY, found)
        told = ", ".join(f"{row['perplexity']:.3f} in {dtype}" for dtype, row in found.items())
        print(f"{arguments.out}: perplexity of the text {told}", file=sys.stderr)
    print(f"{arguments.out}: costs of {arguments.target} on this machine", file=sys.stderr)


def _keep(arguments: argparse.Namespace, folders: dict[str, Path]) -> None:
    """As `DynaTree.calibrate` does it, which keeps the result."""
    from dynatree.api import DynaTree, methods
    from dynatree.engine.machine import set_threads

    quieten()
    set_threads(arguments.threads)
    method = methods.packaged("dynatree", {})
    tree = DynaTree.by(method, folders["target"], folders.get("drafter"), arguments.dtype, arguments.device)
    print(f"{tree.calibrate(anew=True)}: costs of {arguments.target} on this machine", file=sys.stderr)
