"""What is to be decoded, as the commands that decode are told it: a method's parameters, a prompt, a calibration."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dynatree import plugins
from dynatree.commands.arguments import quieten
from dynatree.errors import UserError
from dynatree.settings import PLUGGED
from dynatree.study import sections

FindModel = Callable[[str, sections.Params], Path]


def options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--target, --drafter, --calibration, --set, and the prompt in one of three ways; `several`: it may be repeated."""
    parser.add_argument(
        "--target", required=True, metavar="PATH_OR_NAME", help="model folder, or a model of params.yaml"
    )
    parser.add_argument(
        "--drafter", metavar="PATH_OR_NAME", help="the same; without one dynatree looks up in the text alone"
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    again = "; may be repeated" if several else ""
    for name, kind, words in (("", "TEXT", "text"), ("-file", "FILE", "UTF-8 text"), ("-ids", '"1 2 3"', "token ids")):
        # One prompt is a list of one, so that both kinds of command are read alike.
        how: dict[str, Any] = {"action": "append"} if several else {"nargs": 1}
        prompt.add_argument(f"--prompt{name}", metavar=kind, help=words + again, **how)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the method, such as depth=4"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="measured costs, for dynatree; default: those beside the models, if they were measured for them",
    )


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


def checked_text(text: str) -> str:
    """The text of --prompt. Raises UserError for bytes that are no text."""
    try:
        # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
        return text.encode().decode()
    except UnicodeEncodeError as error:
        raise UserError("--prompt: it is not UTF-8 text") from error


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


class Loaded(NamedTuple):
    """A method, ready to decode: the target, its decoder and the prompts' token ids."""

    target: Any
    decoder: Any
    prompts: list[list[int]]


def load(arguments: argparse.Namespace, known: sections.Params, knobs: dict[str, Any], find_model: FindModel) -> Loaded:
    """The models and the decoder that `arguments` name, with the method's `knobs`; the prompts as token ids.

    Raises UserError if anything is missing or does not fit.
    """
    from dynatree.study import plugin_checks

    decoder_name = known.methods[arguments.method].decoder
    decoder_class = plugins.load("decoding", decoder_name).Decoder
    plugin_checks.check_method(arguments.method, decoder_name, knobs)
    needs = decoder_class.needs(knobs)
    if needs.drafter == "required" and not arguments.drafter:
        raise UserError(f"--drafter: method {arguments.method} needs one; give a model folder or name")
    prompts = [prompt_ids(text) for text in arguments.prompt_ids or []]
    texts = [checked_text(text) for text in arguments.prompt or []]
    texts += [file_text(path) for path in arguments.prompt_file or []]
    folders = {"target": find_model(arguments.target, known)}
    if needs.drafter != "unused" and arguments.drafter:
        folders["drafter"] = find_model(arguments.drafter, known)

    # Imported late, so that errors in the arguments come at once.
    from dynatree.engine.machine import set_threads
    from dynatree.measuring import loading

    quieten()
    set_threads(arguments.threads)
    measured = (arguments.calibration or loading.calibration_beside(folders)) if needs.calibration else None
    (target, _), decoder = loading.load(folders, measured, decoder_name, knobs, arguments.dtype, arguments.device)
    for text in texts:
        if target.tokenizer is None:
            raise UserError(f"model {arguments.target!r} has no tokenizer; give --prompt-ids")
        prompts.append(target.tokenizer.encode(text))
    for ids in prompts:
        target.check_prompt(ids, arguments.max_new_tokens)
    return Loaded(target, decoder, prompts)
