"""Rows of the tables as figures want them: selected, labelled, placed. Knows no figure and reads no file."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dynatree.errors import UserError
from dynatree.figures.shared import grammar, theme

Row = dict[str, Any]
AUTOREGRESSIVE = "autoregressive"
AGAIN = "autoregressive_again"
# Methods that draft nothing: what the others are measured by.
UNDRAFTED = (AUTOREGRESSIVE, AGAIN, "transformers", "transformers_torch")
# Parts of an output by kind of text.
KINDS = ("loops", "new text")
# Which runs a row of `summary` is the mean of.
SAME = ("experiment", "method", "settings", "dataset", "prompt_tokens", "batch", "dtype")
# Which round of which run a node's tree was verified in.
_TREE = ("method", "settings", "dataset", "prompt_id", "repeat", "round")


def rows(tables: Mapping[str, pa.Table], name: str, **equal: Any) -> list[Row]:
    """Rows of the table `name` whose columns equal the given values. Raises UserError if there are none."""
    if name not in tables:
        raise UserError(f"figure needs the table {name!r}; got {', '.join(sorted(tables)) or 'none'}")
    table = tables[name]
    for key, value in equal.items():
        table = table.filter(pc.equal(table[key], value))
    found = table.to_pylist()
    if not found:
        wanted = ", ".join(f"{key} = {value}" for key, value in equal.items())
        raise UserError(f"table {name!r} has no rows{' with ' + wanted if wanted else ''}; aggregate some runs first")
    return found


def data(found: Sequence[Row]) -> pa.Table:
    """Rows as the table that a chart takes."""
    return pa.Table.from_pylist(list(found))


def places(found: Sequence[Row], *columns: str) -> list[tuple[str, list[Row]]]:
    """Rows by where they were measured, titled by the data set and by what else differs among `columns`."""
    keys = sorted({(row["dataset"], *(row[column] for column in columns)) for row in found})
    result = []
    for key in keys:
        here = [row for row in found if (row["dataset"], *(row[column] for column in columns)) == key]
        title = [key[0]]
        for place, column in enumerate(columns, 1):
            if len({other[place] for other in keys}) > 1:
                title.append(f"{column.replace('_', ' ')} {key[place]}")
        result.append((", ".join(title), here))
    return result


def along(tables: Mapping[str, pa.Table], experiment: str, metrics: Iterable[str], column: str) -> dict[str, list[Row]]:
    """Of an experiment the rows of `summary` of each metric, with `x` (of `column`) and `label`, in drawing order.

    Autoregressive decoding's speedup is always 1 and is left out. Raises UserError without such rows.
    """
    every = {metric: rows(tables, "summary", experiment=experiment, metric=metric) for metric in metrics}
    names = labels((row["method"], row["settings"]) for found in every.values() for row in found)
    order = list(names)
    return {
        metric: [
            row | {"x": row[column], "label": names[row["method"], row["settings"]]}
            for row in sorted(found, key=lambda row: (order.index((row["method"], row["settings"])), row[column]))
            if row["value"] is not None and (metric, row["method"]) != ("speedup", AUTOREGRESSIVE)
        ]
        for metric, found in every.items()
    }


def texts(tables: Mapping[str, pa.Table]) -> dict[str, float]:
    """Perplexity of each data set's text, in the format of the main runs."""
    main = {row["dtype"] for row in rows(tables, "runs", experiment="headline")}
    found = rows(tables, "perplexity")
    return {row["dataset"]: row["perplexity"] for row in found if row["dtype"] is None or row["dtype"] in main}


def looping(tables: Mapping[str, pa.Table], experiment: str, dataset: str) -> float:
    """Share of autoregressive decoding's tokens that are in loops, as the table `parts` says what a loop is."""
    found = rows(tables, "parts", experiment=experiment, dataset=dataset, method=AUTOREGRESSIVE)
    counts = {kind: sum(row["tokens"] for row in found if row["part"] == kind) for kind in KINDS}
    return counts["loops"] / (sum(counts.values()) or 1)


def tested(tables: Mapping[str, pa.Table]) -> dict[str, list[tuple[Row, Row]]]:
    """By method of the headline, in drawing order: the `nodes` that were put to the test, each with its parent.

    Those are the nodes below an accepted one: all others are rejected with what they hang from.
    """
    nodes = rows(tables, "nodes", experiment="headline")
    place = {tuple(row[name] for name in (*_TREE, "node")): row for row in nodes}
    found: dict[str, list[tuple[Row, Row]]] = {}
    for method in theme.ordered(row["method"] for row in nodes):
        own = [row for row in nodes if row["method"] == method and row["parent"] >= 0 and row["hit"] is not None]
        found[method] = [(row, place[(*(row[name] for name in _TREE), row["parent"])]) for row in own]
    return found


def labels(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Label per (method, settings), in drawing order; the settings appear where a method has several."""
    found = sorted(set(pairs))
    result = {}
    for method in theme.ordered(name for name, _ in found):
        own = [settings for name, settings in found if name == method]
        for settings in sorted(own, key=lambda text: [knob_key(value) for value in knobs(text).values()]):
            others = [knobs(other) for other in own]
            mine = {k: v for k, v in knobs(settings).items() if any(other.get(k) != v for other in others)}
            suffix = (grammar.knob_text(mine) or settings) if len(own) > 1 else ""
            result[method, settings] = f"{theme.display(method)} {suffix}".strip()
    return result


def knobs(settings: str) -> dict[str, str]:
    """The knobs in a settings name, in its order: `D8_B3_tau0.03_NNone` -> D: 8, B: 3, tau: 0.03, N: None."""
    value = r"None|True|False|-?\d[\d.]*(?:e[-+]?\d+)?"
    return dict(re.findall(rf"(?:^|_)([A-Za-z]\w*?)({value})(?=_|$)", settings))


def knob_key(value: str) -> tuple[bool, float, str]:
    """Sorting key: numbers by size, then words."""
    number = re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", value)
    return (not number, float(value) if number else 0.0, value)
