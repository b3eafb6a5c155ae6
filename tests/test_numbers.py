"""Numbers in documents come from published tables: each block of text names its own, or says that they are by hand."""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from tests.workflow.world import ROOT

CHECKED = [ROOT / name for name in ("README.md", "README.zh.md", "docs/results.md", "docs/limits.md")]
# Before a block its sources, rows of tables or captions of figures:
# <!-- numbers: laptop/benchmark text=greedy method=dynatree,linear; study/figures/oracle_gap -->
SOURCE = re.compile(r"<!-- numbers: (.*?) -->\n?", re.S)
BY_HAND = re.compile(r"\bby hand\b|手工", re.I)
# What is no measured number: code, links, headings' anchors, versions, and settings by their names.
APART = re.compile(
    r"`[^`]*`|\]\([^)]*\)|SmolLM2|Apache-[\d.]+"
    r"|(?:top-[pk]|temperatures?|penalty(?: of)?|Python [\d.]+ (?:to|至)|Python|温度|惩罚) [\d.]+"
)
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*\.\d+(?![\w.]*\d)")


def blocks(text: str) -> list[tuple[list[str], str]]:
    """(sources, text) of each block that has a number with a decimal point and is not by hand; a table is one block."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    found, sources = [], []
    for block in re.split(r"\n{2,}", text):
        if named := SOURCE.findall(block):
            sources = [part.strip() for part in named[0].split(";")]
        plain = APART.sub("", SOURCE.sub("", block))
        if plain.strip():
            if NUMBER.search(plain) and not BY_HAND.search(plain):
                found.append((sources, plain))
            sources = []
    return found


@cache
def rows(table: str) -> list[dict[str, Any]]:
    """Those of a published table, `scale/table`."""
    scale, name = table.split("/")
    found: list[dict[str, Any]] = parquet.read_table(ROOT / f"published/{scale}/results/{name}.parquet").to_pylist()
    return found


def values(source: str) -> list[float]:
    """All numbers in the rows, or in the caption, that a source names."""
    table, *conditions = source.split()
    if "/figures/" in table:
        caption = (ROOT / f"published/{table}.caption.txt").read_text(encoding="utf-8")
        return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", caption.replace(",", ""))]
    chosen = rows(table)
    for condition in conditions:
        column, _, allowed = condition.partition("=")
        assert column in chosen[0], f"{source}: no column {column} in {', '.join(chosen[0])}"
        chosen = [row for row in chosen if str(row[column]) in allowed.split(",")]
        assert chosen, f"{source}: no row with {condition}"
    return [
        float(v) for row in chosen for v in flat([*row.values()]) if isinstance(v, float | int) and math.isfinite(v)
    ]


def flat(values: list[Any]) -> list[Any]:
    return [one for value in values for one in (flat(value) if isinstance(value, list) else [value])]


def given(number: str, known: list[float]) -> bool:
    """Whether some value rounds to `number` as it is written, as it is or in another power of a thousand or hundred."""
    half, written = 0.5 * 10 ** -len(number.partition(".")[2]), float(number.replace(",", ""))
    return any(abs(value * scale - written) <= half * (1 + 1e-9) for value in known for scale in (1, 100, 1000, 1e-3))


@pytest.mark.parametrize("document", CHECKED, ids=lambda path: path.name)
def test_a_document_s_numbers_are_those_of_published_tables(document: Path) -> None:
    """Guards against numbers that no record gives, or that an older run gave."""
    lost = []
    for sources, text in blocks(document.read_text(encoding="utf-8")):
        known = [value for source in sources for value in values(source)]
        wrong = sorted({number for number in NUMBER.findall(text) if not given(number, known)})
        if wrong:
            lost.append(f"{' '.join(text.split())[:90]}...: {', '.join(wrong)} not in {sources or 'no source'}")
    assert not lost, "\n".join(lost)


def test_a_wrong_number_is_found() -> None:
    """Guards against a check that passes whatever is written."""
    summary = rows("laptop/summary")
    speedup = next(row for row in summary if row["metric"] == "speedup" and row["method"] == "dynatree")
    source = f"laptop/summary metric=speedup method=dynatree experiment={speedup['experiment']}"
    known = values(source)
    assert given(f"{speedup['value']:.2f}", known) and not given(f"{10 * max(known):.2f}", known)
    assert blocks(f"<!-- numbers: {source} -->\nIt is 1.25 times as fast.\n\nBy hand: 3.14.") == [
        ([source], "It is 1.25 times as fast.")
    ]
