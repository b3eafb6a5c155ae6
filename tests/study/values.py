"""The project's own params.yaml as plain values, and with one of them changed."""

from copy import deepcopy
from typing import Any

import yaml

from dynatree.study import params

RAW = yaml.safe_load(params.default_path().read_text(encoding="utf-8"))


def changed(place: str | tuple[Any, ...], value: Any) -> dict[str, Any]:
    """params.yaml with one value replaced, or removed where it is `...`."""
    raw = deepcopy(RAW)
    *outer, last = place.split(".") if isinstance(place, str) else place
    section: Any = raw
    for key in outer:
        section = section[key]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return raw
