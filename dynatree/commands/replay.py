"""`dynatree replay`: the recorded rounds of several methods, played side by side on one page."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynatree.commands.arguments import check_out
from dynatree.errors import UserError
from dynatree.files import write_text
from dynatree.tables.rounds import TOKEN_SEPARATOR

_DESCRIPTION = """\
Make a page that plays one prompt's recorded rounds of autoregressive decoding, the chain and DynaTree side by side, at
their true relative speed: text as it is committed, the tree of each round with what was accepted and rejected. The
page loads nothing; it can be paused, and its time moved by hand. An .svg plays the same ten seconds over and over, in a
README, too.

example:
  make all && dynatree replay --results results --out replay.html
"""


def register(add: Callable[..., argparse.ArgumentParser], _find_model: object) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers)."""
    parser = add("replay", help="play recorded rounds side by side", description=_DESCRIPTION)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the tables (default: results)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="page to write: .html, or .svg")
    parser.set_defaults(run=_run)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix not in (".html", ".svg"):
        raise UserError(f"--out {arguments.out}: end it in .html or .svg")
    check_out(arguments.out)
    write(arguments.results, arguments.out)
    print(arguments.out)


def write(results: Path, out: Path) -> None:
    """Write the page or picture `out` of what the tables in `results` record. Raises UserError if they do not."""
    try:
        import pyarrow.parquet as parquet

        from dynatree.figures import timeline
        from dynatree.figures.shared import animation, grammar, replay, theme
    except ImportError as error:
        raise UserError(
            f"replay: drawing needs a package more ({error}); pip install '.[workflow]' in the checkout"
        ) from error
    paths = {name: results / f"{name}.parquet" for name in timeline.TABLES}
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        raise UserError(f"--results {results}: missing {', '.join(missing)}; run `make all` first")
    tables = {name: parquet.read_table(path) for name, path in paths.items()}
    prompt, found = timeline.passes(tables)
    lanes = [
        {
            "name": theme.display(method),
            "colour": theme.colour(method),
            "prefix": _prefix(tables["phases"].to_pylist(), prompt, method),
        }
        | {"rounds": [_round(each, rounds[0].start, grammar.visible) for each in rounds]}
        for method, rounds in found.items()
    ]
    said = f"Prompt {prompt}, decoded by each method in an instrumented pass of its own; ms after the first token."
    if out.suffix == ".svg":
        write_text(out, animation.picture("Recorded rounds of one prompt, side by side,", lanes))
    else:
        write_text(out, replay.page("Recorded rounds, side by side", said, lanes))


def _prefix(phases: list[dict[str, Any]], prompt: str, method: str) -> str:
    """Text of the first commit, which comes with the prefill."""
    own = (row for row in phases if (row["prompt_id"], row["method"]) == (prompt, method) and row["round"] < 0)
    return next((row["text"].replace(TOKEN_SEPARATOR, "") for row in own), "")


def _round(each: Any, zero: float, visible: Callable[[str], str]) -> dict[str, Any]:
    from dynatree.figures.tree_attention_mask import depth_first

    names = ("node", "parent", "depth", "accepted")
    walked = [row for row in depth_first(each.nodes) if row["depth"]] if each.nodes else []
    return {
        "start": each.start - zero,
        "end": each.end - zero,
        "text": "".join(each.texts),
        "tokens": len(each.texts),
        "nodes": [{name: row[name] for name in names} | {"text": visible(row["text"])} for row in walked],
        "own": [visible(text) for text in each.texts[each.accepted :]],
    }
