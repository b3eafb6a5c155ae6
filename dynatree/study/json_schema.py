"""The JSON schema of params.yaml, for editors: read off the classes that check it, plug-ins' keys too. Imports torch.

It says what each key may be; which names there are in the file itself, and what fits what, the checks alone know.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from dynatree import plugins
from dynatree.data import model_sources
from dynatree.distil.recipe import Recipe
from dynatree.settings import PLUGGED
from dynatree.study import parameter_docs
from dynatree.study.sections import Params

Schema = dict[str, Any]


def describe() -> str:
    """The schema as JSON text."""
    schema: Schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}
    schema["title"] = "params.yaml"
    parts: Schema = schema["$defs"]
    sections: list[Any] = [Params, *parameter_docs.nested(Params)]
    for model in sections:
        keys = (schema if model is Params else parts[model.__name__])["properties"]
        for name, comment in parameter_docs.comments(model).items():
            keys[name]["description"] = comment
    parts["Method"] = method_of(parts)
    parts["Variant"] = {
        "description": parts["Variant"]["description"],
        "oneOf": [
            {"$ref": "#/$defs/Method"},
            {
                "properties": {"like": {"type": "string", "description": "one of `methods`"}, **every_knob(parts)},
                "required": ["like"],
                "additionalProperties": False,
            },
        ],
    }
    sources = {name: plugins.load("data.sources", name).Parameters for name in plugins.names("data.sources")}
    parts["Source"] = chosen(parts, "Source", "kind", sources, parts["Source"]["properties"])
    kinds: dict[str, Any] = {**model_sources.KINDS}
    roles = {"target": kinds, "drafter": {**kinds, "distil": Recipe}, "features": {"distil": Recipe}}
    for role, own in roles.items():
        parts["Pair"]["properties"][role] = chosen(parts, role, "kind", own)
    return json.dumps(schema, indent=1, ensure_ascii=False)


def method_of(parts: Schema) -> Schema:
    """A decoder with its keys; of one that takes plug-ins, with theirs."""
    models: dict[str, Any] = {
        name: getattr(plugins.load("decoding", name), "Settings", None) for name in plugins.names("decoding")
    }
    schema = chosen(parts, "Method", "decoder", models, {"reads": parts["Method"]["properties"]["reads"]})
    schema["description"] = "A decoder and its knobs."
    for branch in schema["allOf"]:
        then = branch["then"]
        if plugged := PLUGGED.keys() & then["properties"].keys():
            for knob in plugged:
                then["properties"][knob] = {"enum": plugins.names(PLUGGED[knob])}
            then["allOf"] = policies(parts, then["properties"])
            del then["additionalProperties"]
    return schema


def policies(parts: Schema, shared: Schema) -> list[Schema]:
    """The keys of each policy, beside those that all share."""
    models = {name: plugins.load("policies", name).Policy for name in plugins.names("policies")}
    branches: list[Schema] = chosen(parts, "Method", "policy", models, shared | {"decoder": {"type": "string"}})[
        "allOf"
    ]
    return branches


def every_knob(parts: Schema) -> Schema:
    """The keys of all decoders and policies, each of any value: which of them a method takes is checked elsewhere."""
    found: dict[str, None] = {}
    for branch in parts["Method"]["allOf"]:
        then = branch["then"]
        found |= dict.fromkeys(then["properties"])
        for further in then.get("allOf", ()):
            found |= dict.fromkeys(further["then"]["properties"])
    return {knob: {} for knob in found if knob != "decoder"}


def chosen(
    parts: Schema, title: str, key: str, models: Mapping[str, type[BaseModel] | None], shared: Schema | None = None
) -> Schema:
    """An object whose `key` names one of `models`, which has the other keys but for the `shared` ones."""
    branches = []
    for name, model in models.items():
        own: Schema = model.model_json_schema(ref_template="#/$defs/{model}") if model else {"properties": {}}
        parts.update(own.pop("$defs", {}))
        if model:
            for knob, comment in parameter_docs.comments(model).items():
                own["properties"][knob]["description"] = comment
        then = {
            "properties": {**(shared or {}), **own.get("properties", {}), key: {"const": name}},
            "required": [knob for knob in own.get("required", []) if knob != key],
            "additionalProperties": False,
        }
        branches.append({"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": then})
    required = [knob for knob in (shared or {}) if title == "Source"]
    return {
        "type": "object",
        "properties": {key: {"enum": [*models]}},
        "required": sorted({key, *required}),
        "allOf": branches,
    }
