"""What a replay shows, a lane a method, and the page or picture of it; from the tables of a run without a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynatree.errors import UserError
from dynatree.files import write_text
from dynatree.tables.rounds import TOKEN_SEPARATOR

SUFFIXES = (".html", ".svg")
Lane = dict[str, Any]


class Replay(NamedTuple):
    """`picture`: how the sentence above a picture begins; `said`: the sentence of a page; `lanes` as `replay.page`."""

    title: str
    picture: str
    said: str
    lanes: list[Lane]


def recorded(results: Path) -> Replay:
    """What the tables in `results` record. Raises UserError if they do not."""
    require_drawing()
    import pyarrow.parquet as parquet

    from dynatree.figures import timeline

    paths = {name: results / f"{name}.parquet" for name in timeline.TABLES}
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        raise UserError(f"--results {results}: missing {', '.join(missing)}; run `make all` first, or give a --prompt")
    tables = {name: parquet.read_table(path) for name, path in paths.items()}
    prompt, found = timeline.passes(tables)
    phases = tables["phases"].to_pylist()
    lanes = [
        lane(
            method,
            _prefix(phases, prompt, method),
            [
                round_(each.start - rounds[0].start, each.end - rounds[0].start, each.texts, each.accepted, each.nodes)
                for each in rounds
            ],
        )
        for method, rounds in found.items()
    ]
    return Replay(
        "Recorded rounds, side by side",
        "Recorded rounds of one prompt, side by side,",
        f"Prompt {prompt}, decoded by each method in an instrumented pass of its own; ms after the first token.",
        lanes,
    )


def lane(method: str, prefix: str, rounds: Sequence[dict[str, Any]]) -> Lane:
    """One method's rounds, after the text `prefix` of the first commit, which comes with the prefill."""
    from dynatree.figures.shared import theme

    return {"name": theme.display(method), "colour": theme.colour(method), "prefix": prefix, "rounds": list(rounds)}


def round_(
    start: float,
    end: float,
    texts: Sequence[str],
    accepted: int,
    nodes: Sequence[dict[str, Any]],
    text: str | None = None,
) -> dict[str, Any]:
    """A round from `start` to `end`, ms after the first commit, that emitted `texts`, a token each.

    `accepted`: how many of them were drafted; `nodes`: rows of the verified tree, none without one; `text`: what the
    tokens say together, if not the `texts` one after another.
    """
    from dynatree.figures.shared import grammar
    from dynatree.figures.tree_attention_mask import depth_first

    names = ("node", "parent", "depth", "accepted")
    walked = [row for row in depth_first(list(nodes)) if row["depth"]] if nodes else []
    return {
        "start": start,
        "end": end,
        "text": "".join(texts) if text is None else text,
        "tokens": len(texts),
        "nodes": [{name: row[name] for name in names} | {"text": grammar.visible(row["text"])} for row in walked],
        "own": [grammar.visible(own) for own in texts[accepted:]],
    }


def write(out: Path, replay: Replay) -> None:
    """Write the page, or by its suffix the picture, `out`."""
    from dynatree.figures.shared import animation
    from dynatree.figures.shared import replay as pages

    drawn: dict[str, Callable[[], str]] = {
        ".svg": lambda: animation.picture(replay.picture, replay.lanes),
        ".html": lambda: pages.page(replay.title, replay.said, replay.lanes),
    }
    write_text(out, drawn[out.suffix]())


def require_drawing() -> None:
    """Raise UserError where the packages that draw are not installed."""
    try:
        from dynatree.figures import timeline  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"replay: drawing needs a package more ({error}); pip install '.[workflow]' in the checkout"
        ) from error


def _prefix(phases: Sequence[dict[str, Any]], prompt: str, method: str) -> str:
    own = (row for row in phases if (row["prompt_id"], row["method"]) == (prompt, method) and row["round"] < 0)
    return next((row["text"].replace(TOKEN_SEPARATOR, "") for row in own), "")
