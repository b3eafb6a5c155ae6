"""What is to be decoded, as the commands that decode are told it: a method's parameters, a prompt, a calibration."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dynatree.commands.arguments import quieten
from dynatree.config import explain
from dynatree.errors import UserError
from dynatree.settings import PLUGGED
from dynatree.study import sections

if TYPE_CHECKING:
    from dynatree.api import DynaTree

# Where the arguments hold a prompt.
PROMPTS = ("prompt", "prompt_file", "prompt_ids")
# Of `dynatree`, which goes by costs; said in the help of each command that decodes.
COSTS = """\
Costs are kept for one format: `make demo` and `make all` measure those of --dtype int4 alone. In another one, such as
float32, run `dynatree calibrate` with that --dtype first, or trees grow by their limits alone, with a warning.
"""
FindModel = Callable[[str, sections.Params], Path]


def options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--target, --drafter, --calibration, --set, and the prompt in one of three ways; `several`: it may be repeated."""
    models(parser)
    prompts(parser, several)
    knobs(parser)


def prompts(parser: argparse.ArgumentParser, several: bool = False, required: bool = True) -> None:
    """The prompt in one of three ways, PROMPTS; `several`: it may be repeated."""
    prompt = parser.add_mutually_exclusive_group(required=required)
    again = "; may be repeated" if several else ""
    for name, kind, words in (("", "TEXT", "text"), ("-file", "FILE", "UTF-8 text"), ("-ids", '"1 2 3"', "token ids")):
        # One prompt is a list of one, so that both kinds of command are read alike.
        how: dict[str, Any] = {"action": "append"} if several else {"nargs": 1}
        prompt.add_argument(f"--prompt{name}", metavar=kind, help=words + again, **how)


def models(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--target, which may be left out if not `required`, and --drafter."""
    parser.add_argument(
        "--target", required=required, metavar="PATH_OR_NAME", help="model folder, or a model of params.yaml"
    )
    parser.add_argument(
        "--drafter",
        metavar="PATH_OR_NAME",
        help="the drafter, named likewise; without one the text alone is looked up in",
    )


def knobs(parser: argparse.ArgumentParser) -> None:
    """--set and --calibration: what a method is told besides."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the method, such as depth=4"
    )
    calibration(parser)


def calibration(parser: argparse.ArgumentParser) -> None:
    """--calibration alone."""
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="measured costs, for dynatree; default: those kept or beside the models, if they were measured for them",
    )


def processors(parser: argparse.ArgumentParser) -> None:
    """--repetition-penalty and --no-repeat-ngram-size, and those of sampling."""
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="make tokens that the text has less likely, as transformers does; 1 (default): no penalty",
    )
    parser.add_argument(
        "--no-repeat-ngram-size",
        type=int,
        default=0,
        metavar="N",
        help="no N tokens in a row come twice; 0 (default): any may",
    )

    sampling = parser.add_argument_group("sampling", "the same seed gives the same text by every method of ours")
    sampling.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): greedy")
    sampling.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0 (default): all")
    sampling.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest that reach P together; 1 (default): all"
    )
    sampling.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="draw from tokens of at least P times the likeliest's probability; 0 (default): all",
    )
    sampling.add_argument("--seed", type=int, metavar="N", help="of the noise that tokens are drawn by (default: 0)")


def processed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those as options of a generation. Raises UserError for values that they cannot have."""
    from dynatree.generation.options import GenerationOptions

    named = ("repetition_penalty", "no_repeat_ngram_size", "temperature", "top_k", "top_p", "min_p", "seed")
    given = {name: value for name in named if (value := getattr(arguments, name)) is not None}
    for name in ("top_k", "top_p", "min_p", "seed"):
        if name in given and not given["temperature"]:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {given[name]}: it is for sampling; give a --temperature above 0, too")
    given["do_sample"] = given["temperature"] != 0
    try:
        GenerationOptions(max_new_tokens=1, **given)
    except ValueError as error:
        # An option's key is spelled with dashes.
        raise UserError(f"--{explain(error).replace('_', '-')}") from error
    return given


def method(name: str, known: sections.Params) -> sections.Method:
    """The method of this name. Raises UserError with the names that there are."""
    if name not in known.methods:
        raise UserError(f"--method: no {name!r}; choose one of {', '.join(known.methods)}")
    return known.methods[name]


def settings(method: sections.Method, assignments: list[str]) -> dict[str, Any]:
    """The method's knobs with `KEY=VALUE` changes. Raises UserError for a key that is not the method's."""
    knobs = method.knobs
    settable = [key for key in knobs if key not in PLUGGED]
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or key not in settable:
            raise UserError(
                f"--set {assignment}: write KEY=VALUE with a key of this method: {', '.join(settable) or 'it has none'}"
            )
        try:
            knobs[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: {text!r} is no value") from error
    return knobs


def checked_text(text: str, what: str) -> str:
    """The text of `what`, such as --prompt. Raises UserError for bytes that are no text."""
    try:
        # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
        return text.encode().decode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what}: it is not UTF-8 text") from error


def file_text(path: str) -> str:
    """The text of --prompt-file. Raises UserError for a file that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-file {path}: {error}") from error


def prompt_ids(text: str) -> list[int]:
    """Token ids written with spaces or commas between them."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise UserError(f"--prompt-ids {text!r}: write token ids, such as '1 2 3'") from error


@contextmanager
def loading(arguments: argparse.Namespace) -> Iterator[None]:
    """Tells a person at a terminal that models are loaded, which takes a while, and then how long it took."""
    named = " and ".join(name for name in (arguments.target, arguments.drafter) if name)
    begun, told = time.monotonic(), sys.stderr.isatty()
    if told:
        print(f"loading {named} ({arguments.dtype}) ...", file=sys.stderr, flush=True)
    yield
    if told:
        print(f"loaded in {time.monotonic() - begun:.0f} s", file=sys.stderr)


def load(
    arguments: argparse.Namespace, known: sections.Params, knobs: dict[str, Any], find_model: FindModel
) -> "tuple[DynaTree, list[list[int]]]":
    """The method of `arguments` with its `knobs`, ready to decode, and the prompts as token ids, where there are any.

    Raises UserError if anything is missing or does not fit.
    """
    from dynatree.api import methods

    method = methods.Method(arguments.method, known.methods[arguments.method].decoder, knobs)
    needs = methods.checked(arguments.method, method).needs
    if needs.drafter == "required" and not arguments.drafter:
        raise UserError(f"--drafter: method {arguments.method} needs one; give a model folder or name")
    prompts = [prompt_ids(text) for text in arguments.prompt_ids or []]
    texts = [checked_text(text, "--prompt") for text in arguments.prompt or []]
    texts += [file_text(path) for path in arguments.prompt_file or []]
    target = find_model(arguments.target, known)
    drafted = needs.drafter != "unused" and arguments.drafter
    drafter = find_model(arguments.drafter, known) if drafted else None

    with loading(arguments):
        # Imported late, so that errors in the arguments come at once.
        from dynatree.api import DynaTree
        from dynatree.engine.machine import set_threads

        quieten()
        set_threads(arguments.threads)
        tree = DynaTree.by(method, target, drafter, arguments.dtype, arguments.device, arguments.calibration)
    if texts and tree.tokenizer is None:
        raise UserError(f"model {arguments.target!r} has no tokenizer; give --prompt-ids")
    ids = [tree.check_prompt(prompt, arguments.max_new_tokens) for prompt in prompts]
    return tree, ids + [tree.check_prompt(text, arguments.max_new_tokens) for text in texts]
