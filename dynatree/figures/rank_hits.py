"""How often the first, second, ... child of a node is the target's token, level by level. Knows only nodes."""

from collections.abc import Mapping, Sequence

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, heat, queries, theme

TABLES: tuple[str, ...] = ("nodes",)
SECTION = "Acceptance"

# First depth of each line, and first rank (from 1) of each column; the last ones hold all beyond.
DEPTHS, RANKS = (1, 2, 3, 4, 5, 9, 17), (1, 2, 3, 4, 5)
FEWEST = 10  # nodes of a cell that is shown
CELL = (58, 34)


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A heat map per method. Raises UserError if no cell has enough nodes."""
    charts = []
    for method, cells in _found(tables).items():
        ranks = _spans(RANKS, max(cell["rank"] for cell in cells))
        depths = _spans(DEPTHS, max(cell["depth"] for cell in cells))
        shown = [
            {"across": ranks[cell["rank"]], "down": depths[cell["depth"]], "tone": heat.shade(cell["value"])}
            | {"words": f"{cell['value']:.0%}", "below": f"of {cell['nodes']:,}"}
            for cell in cells
        ]
        title = alt.TitleParams(theme.display(method), subtitle=grammar.plural(sum(c["nodes"] for c in cells), "node"))
        across, down = (list(ranks.values()), "rank among siblings"), (list(depths.values()), "depth")
        size = CELL[0] * len(ranks), CELL[1] * len(depths)
        charts.append(heat.panel(shown, across, down, size, title))
    return theme.finish(alt.concat(*charts, columns=2, spacing=22))


def _spans(firsts: Sequence[int], most: int) -> dict[int, str]:
    """What a line or column that begins with each of `firsts`, up to `most`, holds: 4 alone, 5 to 8, or 17+."""
    ends = [*(following - 1 for following in firsts[1:]), None]
    spans = {}
    for first, last in zip(firsts, ends, strict=True):
        spans[first] = f"{first}+" if last is None else str(first) if last == first else f"{first}\u2013{last}"
    return {first: span for first, span in spans.items() if first <= most}


def _found(tables: Mapping[str, pa.Table]) -> dict[str, list[queries.Row]]:
    """Per method the cells with enough nodes: first depth, first rank, share of hits as `value`, number of nodes."""
    found: dict[str, list[queries.Row]] = {}
    for method, nodes in queries.tested(tables).items():
        groups: dict[tuple[int, int], list[bool]] = {}
        for row, _ in nodes:
            depth = max(first for first in DEPTHS if first <= row["depth"])
            rank = max(first for first in RANKS if first <= row["rank"] + 1)
            groups.setdefault((depth, rank), []).append(row["hit"])
        cells = [
            {"depth": depth, "rank": rank, "value": sum(hits) / len(hits), "nodes": len(hits)}
            for (depth, rank), hits in sorted(groups.items())
            if len(hits) >= FEWEST
        ]
        if cells:
            found[method] = cells
    if not found:
        raise UserError(f"no method has {FEWEST} verified nodes of one depth and rank below an accepted one")
    return found


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Of each method how often a node's first child hits, near the root and far from it, and how often the second."""
    parts = []
    for method, cells in reversed(_found(tables).items()):
        text = f"{theme.display(method)}: first children hit {_rate(cells, 1)}"
        firsts = [cell for cell in cells if cell["rank"] == 1]
        if len(firsts) > 1:
            top, deep = firsts[0], firsts[-1]
            text += f" ({top['value']:.0%} at depth {top['depth']}, {deep['value']:.0%} at depth "
            text += f"{_spans(DEPTHS, deep['depth'])[deep['depth']]})"
        if second := _rate(cells, 2):
            text += f", second {second}"
        parts.append(text + ".")
    return captions.short([*parts, f"Cells of fewer than {FEWEST} nodes are empty."])


def _rate(cells: Sequence[queries.Row], rank: int) -> str:
    """Share of hits of all nodes of a rank; empty where there are none."""
    own = [cell for cell in cells if cell["rank"] == rank]
    nodes = sum(cell["nodes"] for cell in own)
    return f"{sum(cell['value'] * cell['nodes'] for cell in own) / nodes:.0%}" if nodes else ""
