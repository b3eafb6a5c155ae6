"""A recorded token tree beside its attention mask, and a small schematic one. Knows nodes, not how a mask is built."""

import math
from collections.abc import Mapping, Sequence

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import captions, grammar, legends, queries, theme

TABLES: tuple[str, ...] = ("nodes",)
SECTION = "Method"

READABLE, DEEPEST = 24, 6  # nodes, the root apart, and their depth
DEPTH, BRANCH = 3, 2  # of the schematic tree
CELL, INDENT, PREFIX = 17, 22, 4  # pixels, pixels per level, columns for the prefix
WIDEST = 330  # pixels that all levels share; a deep chain is indented less
TONES = {"prefix": "#9ecae1", "self and ancestors": "#08306b", "blocked": "#ececec"}
GREEDY = 0  # rank of the drafter's first choice


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """Above the schematic tree and its mask, below the recorded one. Raises UserError if there is no node."""
    tree = _recorded(tables)
    first = tree[0]
    title = f"Recorded: {theme.display(first['method'])}, {first['dataset']}, round {first['round']}"
    schematic = f"Schematic: depth {DEPTH}, branch {BRANCH}"
    return drawing([(_full(), schematic), (tree, title)], theme.colour(first["method"]))


def drawing(trees: Sequence[tuple[list[queries.Row], str]], tone: str) -> alt.TopLevelMixin:
    """Each of these (nodes, title) beside its mask, one below the other, accepted paths in the colour `tone`.

    A node is a row of the table `nodes`, of which node, parent, depth, rank, text, accepted and path_log_probability
    are read.
    """
    entries = [(name, fill, fill) for name, fill in TONES.items()] + [("accepted path", tone, tone)]
    pairs = [_pair(depth_first(tree), title, tone) for tree, title in trees]
    return theme.finish(alt.vconcat(legends.boxes(entries, 420), *pairs))


def _recorded(tables: Mapping[str, pa.Table]) -> list[queries.Row]:
    """The most instructive round of the headline.

    Readable, and with an accepted node that is no first choice on a path of two or more; of later methods in drawing
    order, ours, before others'; then the most of such nodes, the longest path, the largest tree.
    """
    rounds: dict[tuple[str, ...], list[queries.Row]] = {}
    for row in queries.rows(tables, "nodes", experiment="headline"):
        name = tuple(str(row[k]) for k in ("method", "settings", "dataset", "prompt_id", "repeat"))
        rounds.setdefault((*name, f"{row['round']:09d}"), []).append(row)

    order = theme.ordered(name[0] for name in rounds)  # ours is last

    def merit(name: tuple[str, ...]) -> tuple[float | bool, ...]:
        tree = rounds[name]
        nodes, deepest = len(tree) - 1, max(row["depth"] for row in tree)
        path = [row for row in tree if row["accepted"] and row["depth"]]
        turns = sum(row["rank"] != GREEDY for row in path)
        readable = nodes <= READABLE and deepest <= DEEPEST
        return (
            readable,
            turns > 0 and len(path) >= 2,
            turns > 0,
            order.index(name[0]),
            nodes > deepest,
            turns,
            len(path),
            nodes if readable else -nodes,
        )

    best = max(sorted(rounds), key=merit)
    return sorted(rounds[best], key=lambda row: row["node"])


def _full() -> list[queries.Row]:
    """The full tree of DEPTH and BRANCH; a node's text is the way to it from the root."""
    tree: list[queries.Row] = [{"node": 0, "parent": -1, "depth": 0, "rank": 0, "text": "root", "accepted": False}]
    for parent in tree:
        if parent["depth"] < DEPTH:
            way = f"{parent['text']}." if parent["depth"] else ""
            for rank in range(BRANCH):
                node = {"node": len(tree), "parent": parent["node"], "depth": parent["depth"] + 1, "rank": rank}
                tree.append(node | {"text": f"{way}{rank + 1}", "accepted": False})
    return [row | {"path_log_probability": None} for row in tree]


def depth_first(tree: list[queries.Row]) -> list[queries.Row]:
    """The nodes depth first, siblings by rank: `place` is the row, `above` the places of a node and its ancestors."""
    children: dict[int, list[queries.Row]] = {}
    for row in tree:
        children.setdefault(row["parent"], []).append(row)
    walked: list[queries.Row] = []

    def visit(row: queries.Row, above: tuple[int, ...]) -> None:
        place = len(walked)
        walked.append(row | {"place": place, "above": (*above, place)})
        for child in sorted(children.get(row["node"], []), key=lambda child: (child["rank"], child["node"])):
            visit(child, (*above, place))

    for root in children[-1]:
        visit(root, ())
    return walked


def _pair(walked: list[queries.Row], title: str, tone: str) -> alt.HConcatChart:
    return alt.hconcat(_tree(walked, tone), _mask(walked, tone), title=title, spacing=6)


def _probability(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else "<0.01"


def _upright(count: int) -> alt.Scale:
    """Pixels downwards; one row above the first node is the head."""
    return alt.Scale(domain=[count * CELL, -CELL], nice=False)


def _tree(walked: list[queries.Row], tone: str) -> theme.Layers:
    """Node-link drawing, one row a node, so that every row of the mask continues its node."""
    shown = []
    indent = min(INDENT, WIDEST / max(1, *(row["depth"] for row in walked)))
    for row in walked:
        x, y = 8 + row["depth"] * indent, (row["place"] + 0.5) * CELL
        parent = walked[row["above"][-2]] if row["depth"] else row
        text = grammar.fitting(grammar.visible(row["text"]), 130)
        share = row["path_log_probability"]
        shown.append(
            {"x": x, "y": y, "words": text, "place": str(row["place"]), "accepted": row["accepted"]}
            | {"px": 8 + parent["depth"] * indent, "py": (parent["place"] + 0.5) * CELL}
            | {"tone": tone if row["accepted"] else theme.QUIET, "weight": "bold" if row["accepted"] else "normal"}
            | {"thick": 2.5 if row["accepted"] else 1.0, "end": x + 10 + 0.61 * theme.SMALL * len(text)}
            | {"share": "" if share is None or not row["depth"] else _probability(math.exp(share))}
        )
    shares = any(row["share"] for row in shown)
    right = max(row["end"] for row in shown) + (46 if shares else 6)
    width = right + 26
    scale = alt.Scale(domain=[0, width], nice=False)
    upright = _upright(len(walked))
    table = queries.data(sorted(shown, key=lambda row: row["accepted"]))
    base = alt.Chart(table, width=width, height=(len(walked) + 1) * CELL)
    colour = alt.Color("tone:N", scale=None)
    thick = alt.StrokeWidth("thick:Q", scale=None)

    def across(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=scale, axis=None)

    y = alt.Y("y:Q", scale=upright, axis=None)
    down = base.mark_rule().encode(x=across("px"), y=alt.Y("py:Q", scale=upright, axis=None), y2="y:Q")
    along = base.mark_rule().encode(x=across("px"), x2="x:Q", y=y)
    layers = [
        down.encode(color=colour, strokeWidth=thick),
        along.encode(color=colour, strokeWidth=thick),
        base.mark_circle(size=50, opacity=1).encode(x=across("x"), y=y, color=colour),
        base.mark_text(align="left", dx=8, font=theme.MONO).encode(x=across("x"), y=y, text="words:N", color=colour),
        base.mark_text(align="right", dx=-6).encode(x=alt.value(width), y=y, text="place:N", color=colour),
    ]
    if shares:
        layers.append(base.mark_text(align="right").encode(x=alt.value(right), y=y, text="share:N", color=colour))
        heads = [{"x": 8.0, "y": -CELL / 2, "words": "token"}, {"x": right, "y": -CELL / 2, "words": "probability"}]
        token, probability = (
            alt.Chart(queries.data([head])).encode(x=across("x"), y=y, text="words:N") for head in heads
        )
        layers.append(token.mark_text(align="left", color=theme.QUIET))
        layers.append(probability.mark_text(align="right", color=theme.QUIET))
    return alt.layer(*layers)


def _mask(walked: list[queries.Row], tone: str) -> theme.Layers:
    count = len(walked)
    cells = [{"row": row["place"], "left": -PREFIX, "right": 0, "fill": TONES["prefix"]} for row in walked]
    for row in walked:
        for column in range(count):
            kind = "self and ancestors" if column in row["above"] else "blocked"
            cells.append({"row": row["place"], "left": column, "right": column + 1, "fill": TONES[kind]})
    placed = [
        {"x": c["left"] * CELL, "x2": c["right"] * CELL, "y": c["row"] * CELL, "y2": (c["row"] + 1) * CELL} | c
        for c in cells
    ]
    heads = [{"x": -PREFIX * CELL / 2, "words": "prefix", "tone": theme.QUIET}]
    heads += [
        {"x": (r["place"] + 0.5) * CELL, "words": str(r["place"]), "tone": tone if r["accepted"] else theme.QUIET}
        for r in walked
    ]
    scale = alt.Scale(domain=[-PREFIX * CELL, count * CELL], nice=False)
    upright = _upright(count)
    x, y = alt.X("x:Q", scale=scale, axis=None), alt.Y("y:Q", scale=upright, axis=None)
    boxes = alt.Chart(queries.data(placed), width=(count + PREFIX) * CELL, height=(count + 1) * CELL)
    squares = boxes.mark_rect(stroke="white", strokeWidth=1).encode(
        x=x, x2="x2:Q", y=y, y2="y2:Q", fill=alt.Fill("fill:N", scale=None)
    )
    words = alt.Chart(queries.data([head | {"y": -CELL / 2} for head in heads])).mark_text(fontSize=theme.SMALL - 1)
    return alt.layer(squares, words.encode(x=x, y=y, text="words:N", color=alt.Color("tone:N", scale=None)))


def caption(tables: Mapping[str, pa.Table]) -> str:
    """What this round verified and accepted, and how often the drafter's first choice was not the target's."""
    tree = _recorded(tables)
    first = tree[0]
    head, *rest = _accepted(tree)
    place = f"round {first['round']} of {theme.display(first['method'])} on {first['prompt_id']}"
    parts = [f"{head[:1].upper()}{head[1:-1]} ({place}).", *rest, "A row sees the prefix, itself and its ancestors."]
    return captions.short(parts)


def _accepted(tree: list[queries.Row]) -> list[str]:
    """What a round with these nodes verified and accepted, in sentences of which the first begins small."""
    path = [row for row in tree if row["accepted"] and row["depth"]]
    turns = sum(row["rank"] != GREEDY for row in path)
    text = "".join(row["text"] for row in sorted(path, key=lambda row: row["depth"]))
    parts = [
        f"one target forward verifies {grammar.plural(len(tree) - 1, 'node')} of depth"
        f" {max(row['depth'] for row in tree)} and accepts {grammar.plural(len(path), 'token')}"
        + (f", “{grammar.visible(text)}”" if path else "")
        + "."
    ]
    if path and turns:
        parts.append(f"{turns} of them {'was' if turns == 1 else 'were'} not the drafter's first choice.")
    elif path:
        parts.append("All of them were the drafter's first choices: a chain would have found them too.")
    return parts


def described(tree: list[queries.Row]) -> str:
    """What a round with these nodes verified and accepted, in sentences after a colon."""
    walked = depth_first(tree)
    open_cells = sum(len(row["above"]) for row in walked)
    return " ".join(
        [
            *_accepted(tree),
            f"Each node sees the text before the tree, its ancestors and itself: {open_cells} of the {len(tree) ** 2}"
            " cells of the mask. Nodes are numbered depth first; step is the drafter's probability of a token, path"
            " the product from the root.",
        ]
    )
