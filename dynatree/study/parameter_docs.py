"""The keys of params.yaml as a Markdown reference, read off the classes that check them. Imports torch."""

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from dynatree import plugins
from dynatree.data import model_sources
from dynatree.distil.recipe import Recipe
from dynatree.settings import SYMBOLS
from dynatree.study.sections import Params

# How a bound of a field is written: pydantic keeps each as an object with one of these attributes.
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}


def describe() -> str:
    """All keys: the file's own, then those of every plug-in."""
    lines = [
        "# The keys of `params.yaml`",
        "",
        "Made from the classes that check them, by `dynatree report --parameters`. A key without a default must be",
        "given; a key that is not listed is refused.",
        "",
        "## The file",
        "",
        *table(Params),
    ]
    for model in nested(Params):
        lines += section(model, model.__name__)
    lines += ["## Methods", "", "A method names its `decoder`; its other keys are the decoder's, or its policy's.", ""]
    for name in plugins.names("decoding"):
        module = plugins.load("decoding", name)
        settings = getattr(module, "Settings", None)
        lines += section(settings, f"decoder: {name}") if settings else [f"### `decoder: {name}`", "", "No keys.", ""]
    for name in plugins.names("policies"):
        lines += section(plugins.load("policies", name).Policy, f"policy: {name}")
    lines += [
        "## How settings are written in paths and lists",
        "",
        "`D8_B3_tau0.03_N64`: each knob by its symbol, `None` for null, joined by `_`. A knob without a symbol stands",
        "in a path by its own name and cannot be listed under an experiment's `settings`.",
        "",
        "| symbol | knob |",
        "|---|---|",
        *(f"| `{symbol}` | `{knob}` |" for knob, symbol in SYMBOLS.items()),
        "",
    ]
    lines += ["## Sources of text", ""]
    for name in plugins.names("data.sources"):
        lines += section(plugins.load("data.sources", name).Parameters, f"kind: {name}")
    lines += ["## Models of a pair", ""]
    kinds: dict[str, type[BaseModel]] = {"distil": Recipe, **model_sources.KINDS}
    for name, model in kinds.items():
        lines += section(model, f"kind: {name}")
        for part in nested(model):
            lines += section(part, part.__name__)
    return "\n".join(lines)


def section(model: type[BaseModel], title: str) -> list[str]:
    """Heading, what the class says of itself, and its keys."""
    said = inspect.cleandoc(model.__doc__ or "")
    heading = title if "`" in title or title[0].isupper() else f"`{title}`"
    return [f"### {heading}", "", said, "", *table(model)]


def comments(model: type[BaseModel]) -> dict[str, str]:
    """What the comment beside each key of a class says, there or where it comes from."""
    classes = [each for each in reversed(model.__mro__) if issubclass(each, BaseModel) and each is not BaseModel]
    found = (re.findall(r"^    (\w+): [^\n#]*#\s*([^\n]+)$", inspect.getsource(each), re.M) for each in classes)
    return {key: said for pairs in found for key, said in pairs}


def table(model: type[BaseModel]) -> list[str]:
    """A line a key: type and bounds, default, and the comment beside it."""
    said = comments(model)
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        kind = _kind(field.annotation)
        bounds = [
            f"{sign} {getattr(bound, attribute):g}"
            for bound in field.metadata
            for attribute, sign in BOUNDS.items()
            if getattr(bound, attribute, None) is not None
        ]
        default = "" if field.is_required() else f"`{_written(field.get_default(call_default_factory=True))}`"
        kind = ", ".join([f"`{kind}`", *bounds]).replace("|", "\\|")
        lines.append(f"| `{name}` | {kind} | {default} | {said.get(name, '')} |")
    return [*lines, ""]


def _kind(annotation: Any) -> str:
    """The type as it is written, without the modules it comes from."""
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(
        r"\b(?:typing|dynatree|collections)[\w.]*\.|NoneType", lambda m: "None" if "None" in m[0] else "", text
    )


def _written(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    return json.dumps([*value] if isinstance(value, tuple) else value, default=str)


def nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Classes of the keys below, each once, in the order of the keys."""
    seen: dict[type[BaseModel], None] = {}

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
            seen[annotation] = None
            for field in annotation.model_fields.values():
                walk(field.annotation)
        for part in get_args(annotation):
            walk(part)

    for field in model.model_fields.values():
        walk(field.annotation)
    return iter(seen)
