"""What a reader can ask of a drawn figure on a page: a mark's method, settings, n and interval, and one method alone.

Knows no figure: it goes by the columns of a drawing's rows. A mark of no method tells what it is drawn by.
"""

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dynatree.figures.shared import grammar, theme

Drawing = dict[str, Any]
# The parameter of a drawing that names the method shown alone; empty for all.
ONLY = "only"
_FAINT = 0.08  # how much is left to see of the other methods
_PARTS = ("layer", "concat", "hconcat", "vconcat")
_PALE = ("point", "tick", "circle", "square")  # marks that Vega-Lite draws with an opacity of 0.7 where none is given


def interactive(specification: Mapping[str, Any]) -> Drawing:
    """The Vega-Lite `specification` with tooltips on all marks of data, and a list to choose a method from."""
    drawing = copy.deepcopy(dict(specification))
    datasets: dict[str, list[dict[str, Any]]] = drawing.get("datasets", {})
    known = {name: rows for name, rows in datasets.items() if rows and all(row.get("method") for row in rows)}
    for rows in known.values():
        for row in rows:
            row |= _told(row)
    for unit, data, shared in _units(drawing, None, {}):
        encoded = unit.setdefault("encoding", {})
        if data not in known:
            if told := _drawn_by({**shared, **encoded}, (datasets.get(data or "") or [{}])[0]):
                encoded["tooltip"] = told
        else:
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


# What rows of no method may say besides, in their own words.
_NAMED = {"name": "of", "label": "of", "part": "part", "words": "value", "below": "n", "count": "n"}


def _drawn_by(encoding: Mapping[str, Any], columns: Collection[str]) -> list[Drawing]:
    """The lines of a tooltip: the columns that `encoding` shows under a title, between names and values in words.

    None where it shows nothing under one, as in a legend.
    """
    shown = {name: channel for name, channel in encoding.items() if isinstance(channel, dict) and "field" in channel}
    lines: dict[str, Drawing] = {}
    for name, channel in shown.items():
        axis = channel.get("axis") or channel.get("legend") or {}
        if not (title := channel.get("title") or axis.get("title")):
            continue
        line = {"field": channel["field"], "title": title, "type": channel.get("type", "nominal")}
        if line["type"] == "quantitative":
            line["format"] = axis.get("format") or ",.4~g"
        end = shown.get(f"{name}2")
        lines[channel["field"]] = line if end is None else line | {"title": f"{title}, from"}
        if end is not None:
            lines[end["field"]] = line | {"field": end["field"], "title": f"{title}, to"}
    if not lines:
        return []
    named = {
        name: {"field": name, "title": title, "type": "nominal"}
        for name, title in _NAMED.items()
        if name in columns and name not in lines
    }
    return [*named.values(), *lines.values()]


def _units(
    part: Drawing, data: str | None, shared: Mapping[str, Any]
) -> Iterator[tuple[Drawing, str | None, Mapping[str, Any]]]:
    """The parts of a drawing that are marks, each with the name of its data and what it inherits of encodings."""
    data = part.get("data", {}).get("name", data)
    if "mark" in part:
        yield part, data, shared
    shared = {**shared, **part.get("encoding", {})}
    for name in _PARTS:
        for inner in part.get(name, []):
            yield from _units(inner, data, shared)
    if "spec" in part:
        yield from _units(part["spec"], data, shared)


def _alone(mark: str | Drawing) -> Drawing:
    """An opacity: a mark's own unless another method is shown alone."""
    given = {"type": mark} if isinstance(mark, str) else mark
    usual = given.get("opacity", 0.7 if given["type"] in _PALE else 1)
    return {"condition": {"test": f"!{ONLY} || datum.method === {ONLY}", "value": usual}, "value": _FAINT}
