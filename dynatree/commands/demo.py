"""`dynatree demo`: two texts with DynaTree and with autoregressive decoding, how fast each is, and a tree."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dynatree.commands import generate, options, request, tree
from dynatree.commands.arguments import quieten
from dynatree.study import params

if TYPE_CHECKING:
    from dynatree.api import Generation

PLAIN, METHOD = "autoregressive", "dynatree"
PROMPT = "The aardwolf is a small, insectivorous mammal"
# Greedy text of a small model soon repeats itself, which flatters whatever drafts; drawn text does not.
TEXTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature 0.7, top-p 0.95": {"do_sample": True, "temperature": 0.7, "top_p": 0.95},
}

_DESCRIPTION = f"""\
See it work: costs are measured once, in about a minute, and kept; then a text is decoded greedily and another is drawn
with {METHOD}, streamed with accepted draft tokens in green, and again without drafting. The speeds follow, whether the
texts are equal, and a tree of which much was accepted. Two texts are no measurement: `make benchmark` is.
It needs the extra `workflow` (pip install '.[workflow]' in the checkout), which `make` installs.

examples:
  dynatree demo --target smollm2 --drafter smollm2-drafter --dtype int4
  dynatree demo --target smollm2 --drafter smollm2-drafter --dtype int4 --prompt "Once upon a time"
"""


def register(add: Callable[..., argparse.ArgumentParser], find_model: request.FindModel) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add("demo", help="see it work: texts with and without drafting, and a tree", description=_DESCRIPTION)
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
    length = arguments.max_new_tokens
    with request.loading(arguments):
        # Imported late, so that errors in the arguments come at once.
        from dynatree.api import DynaTree, methods
        from dynatree.engine.machine import set_threads

        quieten()
        set_threads(arguments.threads)
        method = methods.packaged(METHOD, {})
        drafting = DynaTree.by(method, target, drafter, arguments.dtype, arguments.device)
    with drafting:
        drafting.calibrate()
        found = {}
        for name, asked in TEXTS.items():
            drafting.warm_up(prompt, length, **asked)
            print(f"== {METHOD}, {name} ==\n{prompt}", end="")
            stream = drafting.stream(prompt, length, skip_special_tokens=True, **asked)
            generate.show(stream)
            print()
            found[name] = stream.generation
    print("the same texts without drafting, to compare ...", file=sys.stderr)
    plain = {}
    with DynaTree.by(methods.packaged(PLAIN, {}), target, None, arguments.dtype, arguments.device) as decoder:
        for name, asked in TEXTS.items():
            decoder.warm_up(prompt, length, **asked)
            plain[name] = decoder.generate(prompt, length, **asked)
    print(speeds(found, plain))
    rounds = [(one, number) for one in found.values() for number in range(one.rounds)]
    if rounds:
        print(f"\n{tree.shown(*max(rounds, key=lambda place: _worth(*place)))[1]}")
    print("\nmore: dynatree generate --help, dynatree chat --help, dynatree replay --help", file=sys.stderr)


def _worth(found: "Generation", number: int) -> tuple[bool, bool, int]:
    """How worth showing a round is: a branch was right where the first choice was not, it branches, much accepted."""
    chosen = found.trace.rounds[number]
    if not chosen.tree:
        return False, False, 0
    parents = chosen.tree["parents"]
    branch_won = any(row["accepted"] and row["depth"] and row["rank"] for row in found.nodes(number))
    return branch_won, len(set(parents)) < len(parents), chosen.accepted


def speeds(found: "Mapping[str, Generation]", plain: "Mapping[str, Generation]") -> str:
    """A line for each text, with and without drafts: tokens a second, target forwards; and whether tokens are equal."""
    wide = max(map(len, found))
    lines = [f"{'':<{wide}}{'tokens/s':>10}{'without drafts':>16}{'times':>7}  target forwards"]
    for name, one in found.items():
        other = plain[name]
        rates = [len(each.tokens) / each.seconds for each in (one, other)]
        forwards = f"{one.trace.target_forwards} for {other.trace.target_forwards}"
        lines.append(f"{name:<{wide}}{rates[0]:>10.1f}{rates[1]:>16.1f}{rates[0] / rates[1]:>7.2f}  {forwards}")
    same = all(one.tokens == plain[name].tokens for name, one in found.items())
    ending = "the same tokens" if same else "other tokens, where two were equally likely"
    return "\n".join([*lines, f"with drafts and without: {ending}"])
