"""`dynatree drafter-report`: how good a drafter is for a target on text of one's own."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from dynatree.commands import options
from dynatree.commands.arguments import check_texts, quieten
from dynatree.errors import UserError
from dynatree.study import params

_DESCRIPTION = """\
Say how good a drafter is: how often the target's greedy choice is among its first ones, along text and along the
target's own continuations of it; how well its probabilities are calibrated; what one of its steps costs. With the
costs that `dynatree calibrate` measured: the tokens a second that chains, trees and lookup would give here. Several
drafters are compared by that, each with a calibration of its own.

examples:
  dynatree drafter-report --target smollm2 --drafter smollm2-drafter --text essays.txt --text letters/
  dynatree drafter-report --target ./my-model --text essays.txt --drafter ./a --drafter ./b \\
      --calibration ./a-costs --calibration ./b-costs
"""


def register(
    add: Callable[..., argparse.ArgumentParser], find_model: Callable[[str, params.Params], Path]
) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add(
        "drafter-report",
        help="agreement, calibration and cost of a drafter",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "--target", required=True, metavar="PATH_OR_NAME", help="model folder, or a model of params.yaml"
    )
    parser.add_argument(
        "--drafter",
        action="append",
        required=True,
        metavar="PATH_OR_NAME",
        help="the drafter, named likewise; several are compared",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="from `dynatree calibrate`, one a drafter in their order; without it no speeds are simulated",
    )
    parser.add_argument(
        "--text", type=Path, action="append", required=True, metavar="PATH", help="text file, or a folder of *.txt"
    )
    parser.add_argument(
        "--tokens", type=int, default=4096, metavar="N", help="read at most so many of each text (default: 4096)"
    )
    parser.add_argument(
        "--length",
        type=int,
        default=256,
        metavar="N",
        help="in rows of so many tokens, half of a row a prompt (default: 256)",
    )
    options.machine(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def _run(arguments: argparse.Namespace, find_model: Callable[[str, params.Params], Path]) -> None:
    known = params.read()
    if arguments.tokens < 1:
        raise UserError(f"--tokens: {arguments.tokens}; give at least 1")
    if arguments.length < 2:
        raise UserError(f"--length: {arguments.length}; give at least 2")
    check_texts(arguments.text)
    drafters, calibrations = arguments.drafter, arguments.calibration
    if len(set(drafters)) < len(drafters):
        raise UserError(f"--drafter: {' '.join(drafters)}; give each once")
    if len(calibrations) != len(drafters) and (calibrations or len(drafters) > 1):
        raise UserError(
            f"--calibration: {len(calibrations)} for {len(drafters)} drafters; drafters are compared by simulated "
            "speed, give one for each, in the same order"
        )
    folder = find_model(arguments.target, known)
    folders = {name: find_model(name, known) for name in drafters}

    # Imported late, so that errors in the arguments come at once.
    import torch

    from dynatree.costs.calibration import Calibration
    from dynatree.data.sources.text import token_ids
    from dynatree.distil import report
    from dynatree.engine import checkpoint
    from dynatree.engine.machine import describe_machine, set_threads
    from dynatree.engine.tokenizer import require_tokenizer

    quieten()
    set_threads(arguments.threads)
    tokenizer = require_tokenizer(folder)
    texts = {path.stem: torch.tensor(token_ids(path, tokenizer.encode)) for path in arguments.text}
    machine = describe_machine(arguments.dtype, arguments.device)
    fingerprint = checkpoint.fingerprint(folder)
    measured = {
        name: Calibration.read(path, {"target": fingerprint, "drafter": checkpoint.fingerprint(folders[name])}, machine)
        for name, path in zip(drafters, calibrations, strict=False)
    }
    target = checkpoint.load(folder, arguments.dtype, arguments.device)
    passages = report.follow(target, texts, arguments.tokens, arguments.length)
    found = {}
    for name in drafters:
        drafter = checkpoint.load_drafter(folders[name], arguments.dtype, arguments.device)
        found[name] = report.report(target, drafter, passages, measured.get(name))
    if len(found) > 1:
        print(json.dumps(found) if arguments.json else report.rank(found))
    else:
        (alone,) = found.values()
        print(json.dumps(alone) if arguments.json else report.describe(alone))
