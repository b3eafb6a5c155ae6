"""Where a calibration of models that a user gave is kept, and on what text it is measured."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dynatree import files
from dynatree.api.models import Given
from dynatree.engine import checkpoint

# Values of each weight that tell a model apart: all of them would take a second a gigabyte.
_SAMPLED = 64
# What a pair is calibrated on unless text is given: beginnings that a model goes on from in its own way.
OPENINGS = (
    "The history of the town begins with a bridge. In the winter of that year the river rose above the",
    "To bake bread you need flour, water, salt and yeast. First mix the flour with",
    "“I do not believe you,” she said, and closed the door behind her. The old man looked at the",
    "In mathematics, a group is a set with an operation that combines any two of its elements. For example,",
)
OUTPUT_TOKENS, CONTEXTS, REPEATS = 64, (64, 512), 3


def fingerprints(given: Mapping[str, Given]) -> dict[str, str]:
    """By role what tells each model apart; none where one is a name of a hub, which may mean other weights tomorrow."""
    here = [isinstance(model, PreTrainedModel) or Path(model).is_dir() for model in given.values()]
    return {role: _fingerprint(model) for role, model in given.items()} if all(here) else {}


def _fingerprint(given: Given) -> str:
    """Of a folder its files, of a loaded model its configuration and some of its weights."""
    if not isinstance(given, PreTrainedModel):
        return checkpoint.fingerprint(Path(given))
    digest = hashlib.sha256(given.config.to_json_string().encode())
    for name, weight in given.named_parameters():
        flat = weight.detach().flatten()
        some = flat[torch.linspace(0, len(flat) - 1, min(_SAMPLED, len(flat)), device=flat.device).long()]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(json.dumps(some.double().tolist()).encode())
    return digest.hexdigest()


def folder(fingerprints: Mapping[str, str], machine: Mapping[str, Any]) -> Path:
    """In the user's cache: of these models, on this machine, in the format that its description names."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "dynatree" / "calibration" / files.digest([dict(fingerprints), dict(machine)])
