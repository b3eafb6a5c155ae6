"""The base of everything that is checked as it is read: unknown keys are refused, values never change."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dynatree.errors import UserError

# Formats of weights in few bits: a graph on a CPU computes them, and nothing else does.
QUANTISED = ("int8", "int4")
MOST_THREADS = 1024  # thread pools end the process where the system gives no more


class Knobs(BaseModel):
    """A pydantic model that refuses unknown keys and is frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def checked(key: str, build: Callable[[Any], Any], values: Any) -> Any:
    """`build(values)`. Raises UserError, beginning with `key`, where pydantic or a plug-in refuses them."""
    try:
        return build(values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """One line for a pydantic error: the key, what is wrong, the value received."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        value = problem.get("input")
        shown = "" if problem["type"] == "missing" or isinstance(value, dict) else f" (got {value!r})"
        lines.append(f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}{shown}")
    return "; ".join(lines)
