"""The JSON schema takes the project's params.yaml and refuses, at the right place, what the checks refuse."""

import json
from typing import Any

import jsonschema
import pytest

from dynatree.study import json_schema
from tests.study.values import RAW, changed


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(json_schema.describe())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_parameters_fit(validator: Any) -> None:
    """Guards against an editor that marks what is right."""
    assert not [error.message for error in validator.iter_errors(RAW)]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seeds", 1),
        ("seed", -1),
        ("dtype", "int2"),
        ("methods.dynatree.dept", 3),
        ("methods.dynatree.depth", "deep"),
        ("methods.dynatree.depth", ...),
        ("methods.linear.policy", "magic"),
        ("methods.linear.drafting", "magic"),
        ("methods.assisted.confidence", 2),
        ("methods.assisted.decoder", "magic"),
        ("experiments.ablation.also.without_lookup.decoder", "speculative"),
        ("experiments.ablation.also.without_lookup.dept", 3),
        ("experiments.nucleus.top", 0.5),
        ("sources.wikipedia.kind", "hub"),
        ("sources.tiny_books.start", "middle"),
        ("pairs.smollm2.drafter.layer", [0]),
        ("pairs.tiny.target.kind", "distil"),
        ("scales.tiny.prompts", 0),
    ],
)
def test_what_the_checks_refuse_is_marked(validator: Any, place: str, value: Any) -> None:
    """Guards against a schema that lets everything pass below a plug-in's name."""
    assert list(validator.iter_errors(changed(place, value)))


def test_every_key_says_what_it_is(validator: Any) -> None:
    """Guards against keys without the comment that stands beside them in the code."""
    keys = validator.schema["properties"]
    assert all(keys[name]["description"] for name in RAW)
