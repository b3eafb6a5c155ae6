"""How a method's knobs are written in paths, lists and tables: D8_B3_tau0.03_N64."""

import re
from typing import Any

from dynatree.errors import UserError

# Knobs whose values name plug-ins, with the plug-ins' folders.
PLUGGED = {"policy": "policies", "drafting": "drafting"}
# The field's one-letter symbols; a knob without one is written in a path by its own name.
SYMBOLS = {
    "depth": "D",
    "branch": "B",
    "threshold": "tau",
    "budget": "N",
    "draft_tokens": "K",
    "max_ngram": "n",
    "confidence": "c",
}


def write(knobs: dict[str, Any]) -> str:
    """The path part of these knobs (D8_B3_tau0.03_N64), in their own order; `default` if there are none.

    Which plug-ins a method is made of is told by its name.
    """
    parts = [f"{SYMBOLS.get(knob, knob)}{value}" for knob, value in knobs.items() if knob not in PLUGGED]
    return "_".join(parts) or "default"


def parse(text: str) -> dict[str, Any]:
    """The inverse of `write`. Raises UserError for a symbol it does not know."""
    names = {symbol: knob for knob, symbol in SYMBOLS.items()}
    knobs: dict[str, Any] = {}
    for part in text.split("_"):
        match = re.fullmatch(r"([A-Za-z]+?)(None|-?\d+(?:\.\d+)?(?:e-?\d+)?)", part)
        if not match or match[1] not in names:
            raise UserError(
                f"settings {text!r}: cannot read {part!r}; write symbols of {', '.join(names)} with numbers or None, "
                "joined by _, such as D8_B3_tau0.03_N64"
            )
        number = match[2]
        knobs[names[match[1]]] = (
            None if number == "None" else float(number) if re.search(r"[.e]", number) else int(number)
        )
    return knobs


def change(knobs: dict[str, Any], text: str) -> dict[str, Any]:
    """`knobs` with those of `text` put in. Raises UserError if `text` is not how they would be written in a path."""
    changed = parse(text)
    unknown = [SYMBOLS[knob] for knob in changed if knob not in knobs]
    if unknown:
        raise UserError(f"settings {text!r}: the method has no {', '.join(unknown)}; it has {write(knobs)}")
    merged = {**knobs, **changed}
    if unsaid := [knob for knob in knobs if knob not in {*SYMBOLS, *PLUGGED}]:
        raise UserError(
            f"settings {text!r}: {', '.join(unsaid)} of this method has no symbol; name the settings in `also`"
        )
    if write(merged) != text:
        raise UserError(f"settings {text!r}: write it as {write(merged)}")
    return merged
