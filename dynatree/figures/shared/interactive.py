"""What a reader can ask of a drawn figure on a page: a mark's method, settings, n and interval, and one method alone.

Knows no figure: it goes by the columns of a drawing's rows.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from dynatree.figures.shared import grammar, theme

Drawing = dict[str, Any]
# The parameter of a drawing that names the method shown alone; empty for all.
ONLY = "only"
_FAINT = 0.08  # how much is left to see of the other methods
_PARTS = ("layer", "concat", "hconcat", "vconcat")
_PALE = ("point", "tick", "circle", "square")  # marks that Vega-Lite draws with an opacity of 0.7 where none is given


def interactive(specification: Mapping[str, Any]) -> Drawing:
    """The Vega-Lite `specification` with tooltips on all marks of methods, and a list to choose one of them from."""
    drawing = copy.deepcopy(dict(specification))
    datasets: dict[str, list[dict[str, Any]]] = drawing.get("datasets", {})
    known = {name: rows for name, rows in datasets.items() if rows and all(row.get("method") for row in rows)}
    for rows in known.values():
        for row in rows:
            row |= _told(row)
    for unit, data in _units(drawing, None):
        if data in known:
            encoded = unit.setdefault("encoding", {})
            encoded["tooltip"] = [
                {"field": field, "title": title, "type": "nominal"}
                for title, field in _FIELDS.items()
                if all(row[field] for row in known[data])
            ]
            encoded.setdefault("opacity", _alone(unit["mark"]))
    found = theme.ordered(row["method"] for rows in known.values() for row in rows)
    if found:
        labels = ["all methods", *map(theme.display, found)]
        bound = {"input": "select", "options": ["", *found], "labels": labels, "name": "show "}
        drawing["params"] = [*drawing.get("params", []), {"name": ONLY, "value": "", "bind": bound}]
    return drawing


def methods(drawing: Mapping[str, Any]) -> list[str]:
    """The methods that can be shown alone in a drawing of `interactive`."""
    bound = [param["bind"]["options"] for param in drawing.get("params", []) if param["name"] == ONLY]
    return [name for options in bound for name in options if name]


_FIELDS = {
    "method": "told_method",
    "settings": "told_settings",
    "text": "told_text",
    "at": "told_at",
    "value": "told_value",
    "95 % interval": "told_interval",
    "n": "told_n",
}


def _told(row: Mapping[str, Any]) -> dict[str, str]:
    """What a tooltip says of a row, as text; empty for what the row does not know."""
    at, value = row.get("at", row.get("x")), row.get("value")
    unit = str(row.get("metric") or "").replace("_", " ")
    if "low" not in row or not isinstance(value, int | float):
        said = interval = ""  # no row of a value, but of one end of its interval, or of a name
    else:
        said = f"{grammar.number(value)} {unit}".strip()
        interval = "none" if row["low"] is None else f"{grammar.number(row['low'])} to {grammar.number(row['high'])}"
    return {
        "told_method": str(row.get("label") or row.get("name") or theme.display(row["method"])),
        "told_settings": str(row.get("settings") or ""),
        "told_text": ", ".join(str(row[name]) for name in ("text", "dataset") if row.get(name)),
        "told_at": f"{at:,g}" if isinstance(at, int | float) else str(at or ""),
        "told_value": said,
        "told_interval": interval,
        "told_n": grammar.plural(row["prompts"], "prompt") if row.get("prompts") else "",
    }


def _units(part: Drawing, data: str | None) -> Iterator[tuple[Drawing, str | None]]:
    """The parts of a drawing that are marks, each with the name of its data."""
    data = part.get("data", {}).get("name", data)
    if "mark" in part:
        yield part, data
    for name in _PARTS:
        for inner in part.get(name, []):
            yield from _units(inner, data)
    if "spec" in part:
        yield from _units(part["spec"], data)


def _alone(mark: str | Drawing) -> Drawing:
    """An opacity: a mark's own unless another method is shown alone."""
    given = {"type": mark} if isinstance(mark, str) else mark
    usual = given.get("opacity", 0.7 if given["type"] in _PALE else 1)
    return {"condition": {"test": f"!{ONLY} || datum.method === {ONLY}", "value": usual}, "value": _FAINT}
