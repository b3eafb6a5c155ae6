"""Draw the rooms of the library and what they import, as the code says: docs/rooms.svg.

A room is a folder of dynatree. It stands above all that it imports; the single modules at the top of the package are
the floor. Of imports that follow from others no arrow is drawn; a room's title in the picture names all of its own.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import grimp

from dynatree.errors import UserError, reported
from dynatree.files import write_text

# First and last column of each room's box; a column is free for arrows where no box stands in it.
COLUMNS = {
    "commands": (0, 5),
    "api": (0, 5),
    "study": (0, 4),
    "distil": (0, 4),
    "measuring": (0, 4),
    "decoding": (0, 1),
    "verification": (1, 1),
    "drafting": (2, 2),
    "policies": (0, 0),
    "generation": (1, 2),
    "data": (3, 3),
    "figures": (5, 5),
    "costs": (0, 1),
    "engine": (2, 3),
    "tables": (4, 5),
}
FLOOR = "dynatree"
WIDTH, MARGIN, BOX, GAP, HEIGHT, RISE = 800, 16, 116, 14, 46, 34
STYLE = """text { font-family: Liberation Sans, Arial, Helvetica, sans-serif; text-anchor: middle; fill: #222222; }
.name { font-size: 15px; font-weight: bold; }
.said { font-size: 12px; fill: #555555; }
rect { fill: #eef3f8; stroke: #5b7fa3; rx: 4; }
.floor { fill: #f2f2f2; stroke: #8a8a8a; }
path { stroke: #222222; stroke-width: 1.2; fill: none; marker-end: url(#arrow); }"""

Imports = dict[str, set[str]]


def read() -> tuple[dict[str, list[str]], Imports]:
    """Modules of each room, and the rooms that it imports. The floor is the room of modules that lie in no folder."""
    graph = grimp.build_graph("dynatree")
    packages = {name for name in graph.modules if graph.find_children(name)}
    floor = {name for name in graph.find_children("dynatree") if name not in packages}

    def room(module: str) -> str:
        return FLOOR if module in floor else module.split(".")[1]

    modules: dict[str, list[str]] = {}
    imports: Imports = {}
    # The package itself gives names of the rooms on demand, and lies in none.
    for name in sorted(graph.modules - {"dynatree"}):
        imports.setdefault(room(name), set()).update(map(room, graph.find_modules_directly_imported_by(name)))
        if name not in packages:
            modules.setdefault(room(name), []).append(name.rpartition(".")[2])
    return modules, {name: found - {name} for name, found in imports.items()}


def rise(imports: Imports) -> dict[str, int]:
    """The row of each room from the floor up: one above the highest that it imports."""
    rows: dict[str, int] = {}
    while left := [name for name in imports if name not in rows]:
        ready = [name for name in left if imports[name] <= rows.keys()]
        if not ready:
            raise UserError(f"{', '.join(left)} need one another in a circle")
        rows |= {name: 1 + max((rows[other] for other in imports[name]), default=-1) for name in ready}
    return rows


def needed(imports: Imports, rows: dict[str, int]) -> list[tuple[str, str]]:
    """The imports that do not follow from others."""
    below: Imports = {}
    for name in sorted(imports, key=rows.__getitem__):
        below[name] = set().union(imports[name], *(below[other] for other in imports[name]))
    follow = {name: set().union(*(below[other] for other in found)) for name, found in imports.items()}
    return sorted((name, other) for name, found in imports.items() for other in found - follow[name])


def draw() -> str:
    """The picture as SVG."""
    modules, imports = read()
    if homeless := sorted(modules.keys() - COLUMNS.keys() - {FLOOR}):
        raise UserError(
            f"rooms: {', '.join(homeless)} has no place; give it one in COLUMNS of workflow/scripts/rooms.py"
        )
    spans, rows = {**COLUMNS, FLOOR: (0, 5)}, rise(imports)
    height = 2 * MARGIN + (max(rows.values()) + 1) * (HEIGHT + RISE) - RISE

    def left(column: float) -> float:
        return MARGIN + column * (BOX + GAP)

    def top(room: str) -> int:
        return height - MARGIN - HEIGHT - rows[room] * (HEIGHT + RISE)

    def free(upper: str, lower: str) -> list[int]:
        """Columns of both rooms in which nothing stands between them."""
        between = [spans[name] for name in rows if rows[lower] < rows[name] < rows[upper]]
        (first, last), (start, end) = spans[upper], spans[lower]
        shared = range(max(first, start), min(last, end) + 1)
        return [column for column in shared if not any(a <= column <= b for a, b in between)]

    lines = []
    for upper, lower in needed(imports, rows):
        columns = free(upper, lower)
        ends = [sum(columns) / len(columns)] * 2 if columns else [sum(spans[name]) / 2 for name in (upper, lower)]
        x = [round(left(column) + BOX / 2) for column in ends]
        lines.append(f'<path d="M{x[0]} {top(upper) + HEIGHT} L{x[1]} {top(lower) - 2}"/>')
    for name in sorted(modules, key=lambda name: (-rows[name], spans[name])):
        (first, last), y = spans[name], top(name)
        width = left(last) + BOX - left(first)
        middle = round(left(first) + width / 2)
        count = f"{len(modules[name])} module{'s' * (len(modules[name]) > 1)}"
        said = ", ".join(modules[name]) if name == FLOOR else count
        about = f"{name} imports {', '.join(sorted(imports[name])) or 'nothing'}"
        kind = ' class="floor"' if name == FLOOR else ""
        lines += [
            f'<g><title>{about}</title><rect{kind} x="{left(first)}" y="{y}" width="{width}" height="{HEIGHT}"/>',
            f'<text class="name" x="{middle}" y="{y + 20}">{name}</text>',
            f'<text class="said" x="{middle}" y="{y + 37}">{said}</text></g>',
        ]
    return page(WIDTH, height, lines)


def page(width: int, height: int, lines: list[str]) -> str:
    """Boxes and arrows on a white ground as an SVG file."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    arrow = '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    arrow += '<polygon points="0,0 8,4 0,8" fill="#222222"/></marker>'
    ground = f'<polygon points="0,0 {width},0 {width},{height} 0,{height}" fill="#ffffff"/>'
    return "\n".join([head, f"<style>{STYLE}</style><defs>{arrow}</defs>{ground}", *lines, "</svg>\n"])


def shape(picture: str) -> str:
    """The picture but for the numbers of modules, which another plug-in changes."""
    return re.sub(r"\d+ modules?", "", picture)


def main() -> None:
    keep(__doc__, draw, Path("docs/rooms.svg"), "the rooms and imports of the code", shape)


def keep(told: str | None, draw: Callable[[], str], usual: Path, drawn: str, shape: Callable[[str], str] = str) -> None:
    """The command line of a picture that `draw` gives of what is `drawn`: written, or compared by its `shape`."""
    parser = argparse.ArgumentParser(description=told)
    parser.add_argument("--out", type=Path, default=usual, help=f"file to write ({usual})")
    parser.add_argument("--check", action="store_true", help=f"write nothing; fail if {drawn} are others")
    a = parser.parse_args()
    with reported():
        picture = draw()
        if not a.check:
            write_text(a.out, picture)
        elif shape(a.out.read_text(encoding="utf-8")) != shape(picture):
            raise UserError(f"{a.out}: {drawn} are others; run `make {usual.stem}`")


if __name__ == "__main__":
    main()
