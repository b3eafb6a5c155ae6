"""`dynatree replay`: rounds of several methods, recorded or of a prompt given, played side by side on one page."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynatree.commands import lanes, options, request
from dynatree.commands.arguments import check_out
from dynatree.errors import UserError
from dynatree.study import params

if TYPE_CHECKING:
    from dynatree.api import Generation

METHODS = ("autoregressive", "linear", "dynatree")

_DESCRIPTION = f"""\
Make a page that plays autoregressive decoding, the chain and DynaTree on one prompt side by side, at their true
relative speed: text as it is committed, the tree of each round with what was accepted and rejected. With a prompt it is
decoded now, by one method after the other; without one the page shows the recorded rounds of a run (--results), and
needs no model. The page loads nothing; it can be paused, and its time moved by hand. An .svg plays the same ten seconds
over and over, in a README, too. It needs the extra `workflow` (pip install '.[workflow]' in the checkout), which `make`
installs.
{request.COSTS}
examples:
  dynatree replay --target smollm2 --drafter smollm2-drafter --dtype int4 --prompt "Once upon a time" --out replay.html
  dynatree replay --target ./my-model --prompt-file essay.txt --temperature 0.7 --seed 3 --out replay.html
  dynatree replay --results results --out replay.html
"""


def register(add: Callable[..., argparse.ArgumentParser], find_model: request.FindModel) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add("replay", help="play several methods' rounds side by side", description=_DESCRIPTION)
    parser.add_argument("--results", type=Path, help="folder of a run's tables, without a prompt (default: results)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="page to write: .html, or .svg")
    request.models(parser, required=False)
    request.prompts(parser, required=False)
    request.calibration(parser)
    parser.add_argument(
        "--max-new-tokens", type=options.at_least_one, default=120, metavar="N", help="after a prompt (default: 120)"
    )
    request.processors(parser)
    options.machine(parser)
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def _run(arguments: argparse.Namespace, find_model: request.FindModel) -> None:
    if arguments.out.suffix not in lanes.SUFFIXES:
        raise UserError(f"--out {arguments.out}: end it in .html or .svg")
    check_out(arguments.out)
    prompted = next((name for name in request.PROMPTS if getattr(arguments, name) is not None), None)
    option = f"--{(prompted or '').replace('_', '-')}"
    if prompted and arguments.results is not None:
        raise UserError(f"{option} and --results {arguments.results}: give one, a prompt to decode or a run's tables")
    if prompted and arguments.target is None:
        raise UserError(f"{option}: it is decoded now; give a --target, too")
    if not prompted and arguments.target is not None:
        raise UserError(f"--target {arguments.target}: give a --prompt that it is to go on from")
    shown = _decoded(arguments, find_model) if prompted else lanes.recorded(arguments.results or Path("results"))
    lanes.write(arguments.out, shown)
    print(arguments.out)


def _decoded(arguments: argparse.Namespace, find_model: request.FindModel) -> lanes.Replay:
    """The prompt, decoded by one method after the other; the chain only where there is a drafter."""
    known, asked = params.read(), request.processed(arguments)
    lanes.require_drawing()
    found: list[Generation] = []
    for name in METHODS:
        if name == "linear" and not arguments.drafter:
            continue
        own = argparse.Namespace(**vars(arguments), method=name)
        tree, (ids,) = request.load(own, known, request.method(name, known).knobs, find_model)
        with tree:
            tree.warm_up(ids, arguments.max_new_tokens, **asked)
            found.append(tree.generate(ids, arguments.max_new_tokens, **asked))
            prompt = tree.tokenizer.decode(ids) if tree.tokenizer else " ".join(map(str, ids))
    if not found[0].rounds:
        raise UserError(f"the output ends with its first token ({found[0].finish_reason}): there is no round to play")
    baseline = found[0]
    for one in found:
        same = "" if one.tokens == baseline.tokens else "; other tokens, where two were equally likely"
        print(f"{one.method}: {len(one.tokens) / one.seconds:.1f} tokens/s, {one.rounds} rounds{same}", file=sys.stderr)
    begun = prompt if len(prompt) <= 300 else f"{prompt[:299]}…"
    return lanes.Replay(
        "One prompt, side by side",
        "One prompt, decoded by one method after the other,",
        f"“{begun}”, decoded by one method after the other; ms after the first token. One text is no measurement.",
        [lanes.lane(one.method, *_rounds(one)) for one in found],
    )


def _rounds(found: "Generation") -> tuple[str, list[dict[str, Any]]]:
    """Text of the first commit, and the rounds after it; a character of several tokens comes with its last."""
    trace, decode = found.trace, found.decode
    made, before, texts = trace.first, "", []
    for count in (0, *(len(each.emitted) for each in trace.rounds)):
        made += count
        whole = decode(trace.output[:made])
        whole = whole if made == len(trace.output) else whole.rstrip("\ufffd")
        texts.append(whole[len(before) :])
        before = whole
    spans = zip(trace.commits, trace.commits[1:], strict=False)
    return texts[0], [
        lanes.round_(
            1000 * (begin - trace.commits[0]),
            1000 * (end - trace.commits[0]),
            [decode([token]) for token in each.emitted],
            each.accepted,
            found.nodes(number) if each.tree else [],
            text,
        )
        for number, (each, (begin, end), text) in enumerate(zip(trace.rounds, spans, texts[1:], strict=True))
    ]
