"""`dynatree drafter-report`: how good a drafter is for a target on text of one's own."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from dynatree import options, params
from dynatree.commands import check_texts, quieten
from dynatree.errors import UserError

_DESCRIPTION = """\
Say how good a drafter is: how often the target's greedy choice is among its first ones, along text and along the
target's own continuations of it; how well its probabilities are calibrated; what one of its steps costs.

example:
  dynatree drafter-report --target smollm2 --drafter smollm2-drafter --text essays.txt --text letters/
"""


def register(
    add: Callable[..., argparse.ArgumentParser], find_model: Callable[[str, params.Params], Path]
) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add(
        "drafter-report",
        help="agreement, calibration and cost of a drafter",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for role in ("target", "drafter"):
        parser.add_argument(
            f"--{role}", required=True, metavar="PATH_OR_NAME", help="model folder, or a model of params.yaml"
        )
    parser.add_argument(
        "--text", type=Path, action="append", required=True, metavar="PATH", help="text file, or a folder of *.txt"
    )
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="of each text, at most (default: 4096)")
    options.machine(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def _run(arguments: argparse.Namespace, find_model: Callable[[str, params.Params], Path]) -> None:
    known = params.read()
    if arguments.tokens < 1:
        raise UserError(f"--tokens: {arguments.tokens}; give at least 1")
    check_texts(arguments.text)
    folders = {role: find_model(getattr(arguments, role), known) for role in ("target", "drafter")}

    # Imported late, so that errors in the arguments come at once.
    import torch

    from dynatree import drafter_report, model, provenance
    from dynatree.sources.text import token_ids
    from dynatree.tokenizer import require_tokenizer

    quieten()
    provenance.set_threads(arguments.threads)
    tokenizer = require_tokenizer(folders["target"])
    texts = {path.stem: torch.tensor(token_ids(path, tokenizer.encode)) for path in arguments.text}
    target, drafter = (model.load(folder, arguments.dtype, arguments.device) for folder in folders.values())
    found = drafter_report.report(target, drafter, texts, arguments.tokens)
    print(json.dumps(found) if arguments.json else drafter_report.describe(found))
