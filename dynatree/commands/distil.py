"""`dynatree distil`: train a drafter for a target on text files, or put a trained part to its target."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dynatree.commands import options
from dynatree.commands.arguments import check_out, check_texts, quieten
from dynatree.config import explain
from dynatree.errors import UserError
from dynatree.files import features_of
from dynatree.study import params

# Options that a trained part makes no use of.
_OF_TRAINING = ("start", "recipe", "set", "work", "seed", "device")
_PIECE = 4096  # tokens; a file is cut so that some of it can be held out

_DESCRIPTION = """\
Train a drafter for a target from copies of some of its layers, on text files and on what the target makes of them.
The result is a standard transformers checkpoint with draft_vocabulary.json beside it. A stopped run, even a killed
one, goes on when the same command is given again. With --part nothing is trained: a trained part becomes a checkpoint.

examples:
  dynatree distil --target ./my-model --text corpus/ --text essays.txt --out ./my-drafter
  dynatree distil --target ./my-model --text corpus/ --out ./my-drafter --set labels.tokens=4000000 --device cuda
  dynatree distil --target smollm2 --part drafters/smollm2 --out ./smollm2-drafter
"""


def register(
    add: Callable[..., argparse.ArgumentParser], find_model: Callable[[str, params.Params], Path]
) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add(
        "distil",
        help="train a drafter for a target",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "--target", required=True, metavar="PATH_OR_NAME", help="model folder, or a model of params.yaml"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--text", type=Path, action="append", metavar="PATH", help="text file, or a folder of *.txt: one data set"
    )
    source.add_argument("--part", type=Path, metavar="FOLDER", help="a trained part, such as drafters/smollm2")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="a trained part to begin the training with")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="drafter to write")
    parser.add_argument("--recipe", metavar="NAME", help="of a pair of params.yaml (default: pair), or PAIR-features")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the recipe, as layers=[0]"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="labels and checkpoints (default: OUT.work)")
    parser.add_argument("--seed", type=int, metavar="N", help="of text, labels and training (default: 0)")
    parser.add_argument("--device", help="cpu (default) or cuda")
    options.threads(parser)
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def recipe(values: dict[str, Any], assignments: list[str]) -> Any:
    """The checked recipe of these values with `KEY=VALUE` changes; a dot reaches into a section (labels.tokens=9)."""
    from dynatree.distil.recipe import Recipe

    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        *sections, key = path.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        if not separator or not key or not isinstance(section, dict):
            raise UserError(f"--set {assignment}: write KEY=VALUE with a key of the recipe")
        try:
            section[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: {text!r} is no value") from error
    try:
        return Recipe(**values)
    except (ValidationError, TypeError) as error:
        raise UserError(f"recipe: {explain(error)}") from error


def _run(arguments: argparse.Namespace, find_model: Callable[[str, params.Params], Path]) -> None:
    known = params.read()
    given = [name for name in _OF_TRAINING if getattr(arguments, name) not in (None, [])]
    if arguments.part and given:
        raise UserError(f"--{given[0]}: is of a training, and with --part nothing is trained; leave one of them out")
    chosen: Any = None if arguments.part else recipe(_named(known, arguments.recipe or known.pair), arguments.set)
    check_texts(arguments.text or [])
    check_out(arguments.out, folder=True)
    folder = find_model(arguments.target, known)

    # Imported late, so that errors in the arguments come at once.
    from dynatree.distil import part
    from dynatree.distil.make import make
    from dynatree.engine.machine import set_threads

    if arguments.start:
        part.read_record(arguments.start)
    quieten()
    set_threads(arguments.threads)
    trained = arguments.part
    if trained is None:
        datasets = {path.stem or path.name: _pieces(path, folder) for path in arguments.text}
        work = arguments.work or arguments.out.with_name(f"{arguments.out.name}.work")
        command = shlex.join(["dynatree", *sys.argv[1:]])
        keys = {"seed": arguments.seed or 0, "work": work, "device": arguments.device or "cpu"}
        trained = make(folder, datasets, chosen, command=command, start=arguments.start, **keys)
    part.assemble(trained, folder, arguments.out)
    print(f"{arguments.out}: a drafter for {arguments.target}; its trained part is in {trained}", file=sys.stderr)


def _named(known: params.Params, name: str) -> dict[str, Any]:
    """The values of a recipe: of a pair's drafter, by the pair's name, or of its features, by their model's."""
    recipes = {pair: entry.drafter for pair, entry in known.pairs.items()}
    recipes |= {features_of(pair): entry.features for pair, entry in known.pairs.items() if entry.features}
    if name not in recipes:
        raise UserError(f"--recipe: no {name!r}; choose one of {', '.join(recipes)}")
    if recipes[name]["kind"] != "distil":
        kind = recipes[name]["kind"]
        raise UserError(f"--recipe: the drafter of {name} is of kind {kind}; choose one that is trained")
    return recipes[name]


def _pieces(path: Path, folder: Path) -> list[Any]:
    """The tokenised text of `path`, all of it for training, as documents that can be held out."""
    from dynatree.data.sources import text
    from dynatree.data.splits import TUNING, SplitDocument
    from dynatree.engine.tokenizer import require_tokenizer

    tokenizer = require_tokenizer(folder)
    pieces = []
    for document in text.documents(text.Parameters(path=str(path)), Path()):
        ids = tokenizer.encode(document.text)
        size = min(_PIECE, max(1, len(ids) // 4))
        for number, start in enumerate(range(0, len(ids), size)):
            name = f"{document.id}#{number}"
            pieces.append(SplitDocument(name, document.title, TUNING, "piece of a file", ids[start : start + size]))
    return pieces
