"""`dynatree demo`: one text with DynaTree and with autoregressive decoding, how fast each is, and a tree."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from dynatree.commands import generate, options, request, tree
from dynatree.commands.arguments import quieten
from dynatree.study import params

if TYPE_CHECKING:
    from dynatree.api import Generation
    from dynatree.generation.trace import Round

PLAIN, METHOD = "autoregressive", "dynatree"
PROMPT = "The aardwolf is a small, insectivorous mammal"

_DESCRIPTION = f"""\
See it work: costs are measured once, in about a minute, and kept; then a text is decoded with {METHOD}, streamed with
accepted draft tokens in green, and again without drafting. Both speeds follow, whether the texts are equal, and a
tree of which much was accepted. One text is no measurement: `make benchmark` is.

examples:
  dynatree demo --target smollm2 --drafter smollm2-drafter
  dynatree demo --target smollm2 --drafter smollm2-drafter --dtype int4 --prompt "Once upon a time"
"""


def register(add: Callable[..., argparse.ArgumentParser], find_model: request.FindModel) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add("demo", help="see it work: a text with and without drafting, and a tree", description=_DESCRIPTION)
    request.models(parser)
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help=f"default: {PROMPT}")
    parser.add_argument("--max-new-tokens", type=options.at_least_one, default=120, metavar="N", help="default: 120")
    options.machine(parser)
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def _run(arguments: argparse.Namespace, find_model: request.FindModel) -> None:
    known = params.read()
    prompt = request.checked_text(arguments.prompt, "--prompt")
    tree.require_drawing()
    target = find_model(arguments.target, known)
    drafter = find_model(arguments.drafter, known) if arguments.drafter else None

    # Imported late, so that errors in the arguments come at once.
    from dynatree.api import DynaTree, methods
    from dynatree.engine.machine import set_threads

    quieten()
    set_threads(arguments.threads)
    length = arguments.max_new_tokens
    with DynaTree.by(methods.packaged(METHOD, {}), target, drafter, arguments.dtype, arguments.device) as drafting:
        drafting.calibrate()
        drafting.warm_up(prompt, length)
        print(f"== {METHOD} ==\n{prompt}", end="")
        stream = drafting.stream(prompt, length)
        generate.show(stream)
        found = stream.generation
    with DynaTree.by(methods.packaged(PLAIN, {}), target, None, arguments.dtype, arguments.device) as plain:
        plain.warm_up(prompt, length)
        other = plain.generate(prompt, length)
    print(f"\n{speeds(found, other)}")
    if found.rounds:
        number = max(range(found.rounds), key=lambda place: worth_showing(found.trace.rounds[place]))
        print(f"\n{tree.shown(found, number)[1]}")
    print("\nmore: dynatree generate --help, dynatree chat --help, dynatree replay --help", file=sys.stderr)


def worth_showing(chosen: "Round") -> tuple[bool, int]:
    """Trees that branch first, then by how much of them was accepted."""
    parents = chosen.tree["parents"] if chosen.tree else []
    return len(set(parents)) < len(parents), chosen.accepted


def speeds(found: "Generation", plain: "Generation") -> str:
    """A line for each of two generations: tokens a second, target forwards; and whether the tokens are the same."""
    lines = [f"{'':<16}{'tokens/s':>9}{'target forwards':>17}"]
    lines += [
        f"{one.method:<16}{len(one.tokens) / one.seconds:>9.1f}{one.trace.target_forwards:>17}"
        for one in (plain, found)
    ]
    same = "the same tokens" if found.tokens == plain.tokens else "other tokens, where two were equally likely"
    return "\n".join([*lines, f"{plain.seconds / found.seconds:.2f} times as fast; {same}"])
