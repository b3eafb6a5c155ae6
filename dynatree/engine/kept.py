"""Models that stay for what the same process does next, as the jobs of a job graph do (workflow/scripts/worker.py)."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dynatree.engine import checkpoint
from dynatree.engine.compatibility import pair_up
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel

# The models that were loaded last, by all that tells them apart: one of each at most.
_TARGET: dict[tuple[Any, ...], LanguageModel] = {}
_DRAFTER: dict[tuple[Any, ...], DraftModel] = {}


def pair(folders: Mapping[str, Path], dtype: str, device: str, requests: int = 1) -> checkpoint.Pair:
    """As `checkpoint.load_pair`, prepared for timings of so many requests together.

    They are the same as last time where this process asks for the same. What they compute does not depend on what they
    computed before. Raises UserError as that does.
    """
    where = dtype, device, torch.get_num_threads()
    asked = {role: (str(folders[role].resolve()), checkpoint.fingerprint(folders[role]), *where) for role in folders}
    if not gc.get_freeze_count():
        # What is imported stays, too: no collection, of which each timed output has one, has to look at it again.
        gc.freeze()
    if asked["target"] not in _TARGET:
        # First: there may be no room for both.
        _TARGET.clear()
        _DRAFTER.clear()
        _TARGET[asked["target"]] = checkpoint.load(folders["target"], dtype, device)
    target = _TARGET[asked["target"]]
    if "drafter" not in asked:
        target.prepare(requests)
        return checkpoint.Pair(target)
    if asked["drafter"] not in _DRAFTER:
        _DRAFTER.clear()
        _DRAFTER[asked["drafter"]] = checkpoint.load_drafter_of(target, folders, dtype, device)
    drafter = _DRAFTER[asked["drafter"]]
    # Before they are prepared: graphs for states are others.
    pair_up(target, drafter)
    for model in (target, drafter):
        model.prepare(requests)
    return checkpoint.Pair(target, drafter)
