"""Draw which rule of the job graph needs what which other makes, as `snakemake --rulegraph` says: docs/rule_graph.svg.

A rule stands below all that it needs. No arrow is drawn for what follows from others, and checksums of code, which
every rule needs, are left out.
"""

import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

from rooms import Imports, keep, needed, page, rise

from dynatree.errors import UserError

BOX, SLOT, GAP, HEIGHT, FALL, MARGIN = 132, 8, 18, 30, 34, 16
SWEEPS = 8
# A rule, or (upper rule, lower rule, row): where an arrow passes a row.
Place = str | tuple[str, str, int]


def read() -> Imports:
    """The rules that each rule needs. Raises UserError if Snakemake gives no graph."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--rulegraph", "dot", "--", "all"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', done.stdout, re.M))
    if not names:
        raise UserError(f"snakemake --rulegraph: {' '.join(done.stderr.split())}")
    shown = {rule for rule in names.values() if rule != "all" and not rule.startswith("library")}
    found: Imports = {rule: set() for rule in names.values() if rule in shown}
    for upper, lower in re.findall(r"^\s*(\d+) -> (\d+)$", done.stdout, re.M):
        # Calibrations of further formats need that of the main one: the same rule, of which no arrow tells anything.
        if {names[upper], names[lower]} <= shown and names[upper] != names[lower]:
            found[names[lower]].add(names[upper])
    return found


def arrange(rows: dict[str, int], arrows: list[tuple[str, str]]) -> dict[Place, float]:
    """The middle of each place from left to right: each stands under the mean of what it follows."""
    lines: list[list[Place]] = [[] for _ in range(max(rows.values()) + 1)]
    above: dict[Place, list[Place]] = {}
    for rule in sorted(rows):
        lines[rows[rule]].append(rule)
    for lower, upper in arrows:
        before: Place = upper
        for row in range(rows[upper] + 1, rows[lower]):
            passing: Place = (upper, lower, row)
            lines[row].append(passing)
            above[passing], before = [before], passing
        above.setdefault(lower, []).append(before)
    below: dict[Place, list[Place]] = {}
    for place, found in above.items():
        for other in found:
            below.setdefault(other, []).append(place)

    def spread(line: list[Place]) -> dict[Place, float]:
        widths = [BOX if isinstance(place, str) else SLOT for place in line]
        x, found = -(sum(widths) + GAP * (len(line) - 1)) / 2, {}
        for place, width in zip(line, widths, strict=True):
            found[place] = x + width / 2
            x += width + GAP
        return found

    middles = {place: x for line in lines for place, x in spread(line).items()}
    for sweep in range(SWEEPS):
        near = below if sweep % 2 else above
        for line in reversed(lines) if sweep % 2 else lines:
            line.sort(key=lambda place: mean([middles[other] for other in near.get(place, [place])]))
            middles |= spread(line)
    return middles


def draw(graph: Imports) -> str:
    """The picture as SVG."""
    rows = rise(graph)
    arrows = needed(graph, rows)
    middles = arrange(rows, arrows)
    half = max(abs(x) for x in middles.values()) + BOX / 2 + MARGIN
    x = {place: round(middle + half) for place, middle in middles.items()}

    def top(row: int) -> int:
        return MARGIN + row * (HEIGHT + FALL)

    lines = []
    for lower, upper in arrows:
        passed = range(rows[upper] + 1, rows[lower])
        path = [f"M{x[upper]} {top(rows[upper]) + HEIGHT}"]
        path += [f"L{x[upper, lower, row]} {y}" for row in passed for y in (top(row), top(row) + HEIGHT)]
        lines.append(f'<path d="{" ".join([*path, f"L{x[lower]} {top(rows[lower]) - 2}"])}"/>')
    for rule, row in rows.items():
        about = f"{rule} needs {', '.join(sorted(graph[rule])) or 'nothing'}"
        box = f'x="{x[rule] - BOX // 2}" y="{top(row)}" width="{BOX}" height="{HEIGHT}"'
        lines.append(f"<g><title>{about}</title><rect {box}/>")
        lines.append(f'<text x="{x[rule]}" y="{top(row) + 20}" font-size="13">{rule}</text></g>')
    return page(round(2 * half), top(max(rows.values())) + HEIGHT + MARGIN, lines)


if __name__ == "__main__":
    keep(__doc__, lambda: draw(read()), Path("docs/rule_graph.svg"), "the rules")
