"""Values as readers expect them in sentences and labels: numbers, lists, plurals, knobs, tokens. Knows no table."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from dynatree.figures.shared.theme import SMALL


def interval(row: Mapping[str, Any], unit: str = "") -> str:
    """Value with its interval, as text: `1.31 [1.20, 1.44]`; the interval only where there is one."""
    text = number(row["value"]) + unit
    return text if row["low"] is None else f"{text} [{number(row['low'])}, {number(row['high'])}]"


def number(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def plural(count: int, thing: str, things: str = "") -> str:
    """`1 prompt`, `4 prompts`; `things` where an s does not do."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def knob_text(values: Mapping[str, str]) -> str:
    """Knobs as readers expect them: `D 8, tau none`."""
    return ", ".join(f"{name} {knob_value(value)}" for name, value in values.items())


def knob_value(value: str) -> str:
    """A knob's value as text; null is `none`."""
    return value.lower() if value in ("None", "True", "False") else value


def visible(text: str) -> str:
    """A token's text with its white space shown (`·` space, `¶` newline, `→` tab) and nothing unprintable."""
    shown = text.replace(" ", "·").replace("\n", "¶").replace("\t", "→")
    return "".join(c if unicodedata.category(c)[0] not in "CZ" else "\ufffd" for c in shown) or "∅"


def fitting(text: str, pixels: float, size: float = SMALL) -> str:
    """As much of `text` as fits into `pixels` in MONO; cut with an ellipsis, empty if not even two letters fit."""
    room = int(pixels / (0.61 * size))  # a MONO letter is about 0.6 of its size wide
    return text if len(text) <= room else text[: room - 1] + "…" if room >= 3 else ""
