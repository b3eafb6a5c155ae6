"""`dynatree generate`: decode prompts and say how fast that was."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dynatree.commands import options, request
from dynatree.study import params

if TYPE_CHECKING:
    from dynatree.api import Generation
    from dynatree.api.streaming import Piece

_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"

_DESCRIPTION = f"""\
Decode a prompt with one method, greedily, or with --temperature drawn by a seed. The output of every method equals that
of `autoregressive`; what differs is the number of target forwards, and the time. (Drawn, transformers' own methods give
other texts: they have a generator of their own.) Without --json the text streams as it is committed: accepted draft
tokens in green, the target's own plain. Several prompts are decoded together where the method can, else one after the
other; their texts come under headings when all are done. Special tokens, such as a text's end, are not shown.
{request.COSTS}
examples:
  dynatree generate --target smollm2 --drafter smollm2-drafter --dtype int4 --prompt "The tree" --temperature 0.7
  dynatree generate --target ./my-model --method prompt_lookup --prompt-file essay.txt --max-new-tokens 200 --json
  dynatree generate --target smollm2 --drafter smollm2-drafter --dtype int4 --set depth=4 --set threshold=0.1 \\
      --prompt-ids "504 2670" --max-new-tokens 40
"""


def register(add: Callable[..., argparse.ArgumentParser], find_model: request.FindModel) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add(
        "generate",
        help="decode prompts",
        description=_DESCRIPTION,
    )
    request.options(parser, several=True)
    parser.add_argument("--method", default="dynatree", metavar="NAME", help="of params.yaml (default: dynatree)")
    parser.add_argument("--max-new-tokens", type=options.at_least_one, default=128, metavar="N", help="default: 128")
    request.processors(parser)
    parser.add_argument("--ignore-eos", action="store_true", help="go on after the end-of-sequence token")
    parser.add_argument("--json", action="store_true", help="print one JSON object (of several prompts a list) only")
    options.machine(parser)
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def _run(arguments: argparse.Namespace, find_model: request.FindModel) -> None:
    known = params.read()
    knobs = request.settings(request.method(arguments.method, known), arguments.set)
    asked = request.processed(arguments)
    tree, prompts = request.load(arguments, known, knobs, find_model)
    tree.warm_up(prompts[0], arguments.max_new_tokens, **asked)
    if arguments.ignore_eos:
        asked["eos_token_id"] = None
    streamed = len(prompts) == 1 and not arguments.json
    if streamed:
        stream = tree.stream(prompts[0], arguments.max_new_tokens, skip_special_tokens=True, **asked)
        show(stream)
        found = [stream.generation]
    else:
        found = tree.generate(prompts, arguments.max_new_tokens, skip_special_tokens=True, **asked)
    if arguments.json:
        results = [_result(one, prompt, knobs) for one, prompt in zip(found, prompts, strict=True)]
        print(json.dumps(results[0] if len(results) == 1 else results))
        return
    for number, one in enumerate(found, start=1):
        heading = "" if streamed else f"{number}: "
        if heading:
            print(f"== prompt {number} of {len(prompts)} ==")
            print(" ".join(map(str, one.tokens)) if one.text is None else one.text)
        trace = one.trace
        print(
            f"{heading}{len(one.tokens)} tokens in {one.seconds:.2f} s ({len(one.tokens) / one.seconds:.1f} tokens/s), "
            f"{one.rounds} rounds, {trace.target_forwards} target forwards, "
            f"{sum(r.accepted for r in trace.rounds)} of {sum(r.drafted for r in trace.rounds)} drafted accepted",
            file=sys.stderr,
        )


def _result(found: "Generation", prompt: list[int], knobs: dict[str, Any]) -> dict[str, Any]:
    """What --json prints of one prompt."""
    trace = found.trace
    return {
        "method": found.method,
        "parameters": knobs,
        "prompt_ids": prompt,
        "output_ids": found.tokens,
        "text": found.text,
        "seconds": found.seconds,
        "ttft_seconds": trace.commits[0],
        "rounds": found.rounds,
        "target_forwards": trace.target_forwards,
        "draft_forwards": trace.draft_forwards,
        "drafted": sum(r.drafted for r in trace.rounds),
        "accepted": sum(r.accepted for r in trace.rounds),
    }


def show(pieces: "Iterable[Piece]") -> None:
    """Print pieces at once, accepted drafted ones in green on a terminal, and end the line."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for piece in pieces:
        sys.stdout.write(f"{_GREEN}{piece}{_PLAIN}" if colour and piece.drafted else piece)
        sys.stdout.flush()
    print()
