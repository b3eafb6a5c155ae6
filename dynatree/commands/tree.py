"""`dynatree tree`: the tree of one round, as text and as a drawing."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynatree.commands import options, request
from dynatree.commands.arguments import check_out
from dynatree.errors import UserError
from dynatree.study import params

if TYPE_CHECKING:
    from dynatree.api import Generation

_DESCRIPTION = f"""\
Decode a prompt greedily with a method that grows trees, and show the tree of one round: every node that the target
verified with its position and the drafter's probabilities, the accepted path (marked *), and the attention mask under
which one forward verified all of it. --out draws the same.
It needs the extra `workflow` (pip install '.[workflow]' in the checkout), which `make` installs.
{request.COSTS}
examples:
  dynatree tree --target smollm2 --drafter smollm2-drafter --dtype int4 --prompt "The tree grows" --round 2
  dynatree tree --target smollm2 --drafter smollm2-drafter --dtype int4 --method fixed_tree --set depth=2 \\
      --set branch=3 --set budget=null --prompt "The tree" --out tree.svg
  dynatree tree --target ./my-model --method dynatree --prompt-file essay.txt --round 5 --out tree.html

reading it:
  node      row and column of the mask; node 0 is the root, the last token before the round
  position  what the model is told: tokens before the node on its own path, so siblings share one
  step      the drafter's probability of the token after its parent, as the method corrects it
  path      the steps multiplied from the root; trees are grown and cut by it
  a round   emits its accepted path and one token more, the target's own, which is the next round's root
"""


def register(add: Callable[..., argparse.ArgumentParser], find_model: request.FindModel) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add(
        "tree",
        help="show the tree of one round",
        description=_DESCRIPTION,
    )
    request.options(parser)
    parser.add_argument("--method", default="dynatree", metavar="NAME", help="one that grows trees (default: dynatree)")
    parser.add_argument("--round", type=int, default=0, metavar="N", help="counted from 0 (default: 0)")
    parser.add_argument(
        "--max-new-tokens",
        type=options.at_least_one,
        default=64,
        metavar="N",
        help="decode so many, and show a round of that (default: 64)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw it: .svg, .png or .html")
    options.machine(parser)
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def _run(arguments: argparse.Namespace, find_model: request.FindModel) -> None:
    known = params.read()
    growing = [name for name, method in known.methods.items() if "policy" in method.knobs]
    if arguments.method not in growing:
        raise UserError(f"--method: {arguments.method!r} grows no tree; choose one of {', '.join(growing)}")
    if arguments.round < 0:
        raise UserError(f"--round: {arguments.round}; rounds are counted from 0")
    knobs = request.settings(known.methods[arguments.method], arguments.set)

    require_drawing()
    from dynatree.figures.shared import grammar, render, theme

    if arguments.out is not None:
        if arguments.out.suffix not in render.SUFFIXES:
            raise UserError(f"--out {arguments.out}: end it in one of {', '.join(render.SUFFIXES)}")
        check_out(arguments.out)
    tree, (ids,) = request.load(arguments, known, knobs, find_model)
    found = tree.generate(ids, arguments.max_new_tokens)
    rounds = found.trace.rounds
    if arguments.round >= len(rounds):
        raise UserError(
            f"--round: no {arguments.round}; this output of {grammar.plural(len(found.tokens), 'token')} has "
            f"{grammar.plural(len(rounds), 'round')}, counted from 0; take an earlier one or raise "
            f"--max-new-tokens, now {arguments.max_new_tokens}"
        )
    caption, text = shown(found, arguments.round)
    if arguments.out is not None:
        render.write(found.tree(arguments.round), arguments.out, caption)
        print(f"{arguments.out}: {theme.display(arguments.method)}, round {arguments.round}", file=sys.stderr)
    print(text)
    sizes = " ".join(f"{other.drafted}/{other.accepted}" for other in rounds)
    print(f"nodes/accepted in rounds 0 to {len(rounds) - 1}: {sizes}", file=sys.stderr)


def require_drawing() -> None:
    """Raise UserError where what the figures need is not installed."""
    try:
        from dynatree.figures import tree_attention_mask  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"tree: drawing needs a package more ({error}); pip install '.[workflow]' in the checkout"
        ) from error


def shown(found: "Generation", number: int) -> tuple[str, str]:
    """Caption of a round's tree, and the round as text: caption, tree and mask. Raises UserError as `found.nodes`."""
    require_drawing()
    from dynatree.figures import tree_attention_mask as figure
    from dynatree.figures.shared import theme

    trace, nodes = found.trace, found.nodes(number)
    chosen, walked = trace.rounds[number], figure.depth_first(nodes)
    # The root is the last token that was emitted before, and not yet forwarded.
    before = found.prompt_tokens + trace.first + sum(len(other.emitted) for other in trace.rounds[:number]) - 1
    own = chosen.emitted[chosen.accepted :]
    ending = f" The target's own token after it: {quoted(found.decode(own))}." if own else ""
    title = f"{theme.display(found.method)}, round {number}"
    caption = f"{title}, after {before} tokens: {figure.described(nodes)}{ending}"
    return caption, f"{caption}\n\n{tree_text(walked, before)}\n\n{mask_text(walked)}"


def quoted(text: str) -> str:
    """A token's text, visible, in quotes."""
    from dynatree.figures.shared import grammar

    return f"“{grammar.visible(text)}”"


def tree_text(walked: list[dict[str, Any]], before: int) -> str:
    """The tree with one node a line, depth first: number, mark, position after `before` tokens, step, path, token."""
    from dynatree.figures.shared import grammar

    last = {row["parent"]: row["place"] for row in walked}  # of each parent, the child that is drawn last
    wide = 2 if max(row["depth"] for row in walked) <= 16 else 1  # letters a level; a long chain is indented less
    lines = ["node   position  step  path  token"]
    for row in walked:
        step = path = ""
        if row["depth"]:
            parent = walked[row["above"][-2]]
            path = f"{math.exp(row['path_log_probability']):.2f}"
            step = f"{math.exp(row['path_log_probability'] - parent['path_log_probability']):.2f}"
        line = [walked[place] for place in row["above"][1:]]
        ended = [last[node["parent"]] == node["place"] for node in line]
        marks = [("  " if end else "│ ")[:wide] for end in ended[:-1]] + [("└ " if end else "├ ") for end in ended[-1:]]
        mark = "*" if row["accepted"] else " "
        words = grammar.visible(row["text"])
        lines.append(f"{row['place']:4} {mark} {before + row['depth']:8}  {step:4}  {path:4}  {''.join(marks)}{words}")
    return "\n".join(lines)


def mask_text(walked: list[dict[str, Any]]) -> str:
    """The attention mask with one node a line: `#` where it may attend, `.` where not; columns bear their digits."""
    count = len(walked)
    digits = len(str(count - 1))
    numbers = [f"{place:{digits}}" for place in range(count)]
    lines = ["attention mask: a row attends to the prefix and to the columns marked #"]
    lines += [
        f"{'prefix' if digit == digits - 1 else '':>12} {' '.join(number[digit] for number in numbers)}"
        for digit in range(digits)
    ]
    for row in walked:
        cells = " ".join("#" if column in row["above"] else "." for column in range(count))
        lines.append(f"{row['place']:4}       # {cells}")
    return "\n".join(lines)
