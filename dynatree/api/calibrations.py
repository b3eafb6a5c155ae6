"""Where a calibration of models that a user gave is kept, and on what text it is measured."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynatree import files
from dynatree.api.models import Loaded
from dynatree.costs.calibration import COSTS, VERSION, Calibration
from dynatree.engine import checkpoint
from dynatree.errors import UserError, readable
from dynatree.measuring.loading import calibration_beside

log = logging.getLogger(__name__)

# What a pair is calibrated on unless text is given: beginnings that a model goes on from in its own way.
OPENINGS = (
    "The history of the town begins with a bridge. In the winter of that year the river rose above the",
    "To bake bread you need flour, water, salt and yeast. First mix the flour with",
    "“I do not believe you,” she said, and closed the door behind her. The old man looked at the",
    "In mathematics, a group is a set with an operation that combines any two of its elements. For example,",
)
OUTPUT_TOKENS, CONTEXTS, REPEATS = 64, (64, 512), 3


def find(given: str | Path | Calibration | None, loaded: Loaded, machine: Mapping[str, Any]) -> Calibration | None:
    """The calibration that was `given`, else what is kept of these models or stands beside them; None: there is none.

    Raises UserError for one that was given and is damaged, of other models or of another version; one that was not is
    left alone then, with a warning.
    """
    if isinstance(given, Calibration):
        return given
    if given is not None:
        return _read(Path(given), loaded, machine)
    return kept(loaded, machine) or _beside(loaded, machine)


def kept(loaded: Loaded, machine: Mapping[str, Any]) -> Calibration | None:
    """What is kept of these models on this machine; None: nothing, or, with a warning, what cannot be used."""
    home = folder(loaded.fingerprints, machine)
    with _warned():
        return _read(home, loaded, machine) if (home / COSTS).is_file() else None
    return None


def _beside(loaded: Loaded, machine: Mapping[str, Any]) -> Calibration | None:
    """The same of what the workflow measured beside the models' folders."""
    with _warned():
        home = calibration_beside(loaded.folders, machine["dtype"]) if loaded.folders else None
        return None if home is None else _read(home, loaded, machine)
    return None


@contextmanager
def _warned() -> Iterator[None]:
    """Within, what cannot be read is told and left alone: nobody has named it."""
    try:
        yield
    except UserError as error:
        log.warning("%s", error)


def _read(home: Path, loaded: Loaded, machine: Mapping[str, Any]) -> Calibration:
    """The calibration in `home`. Raises UserError for one that is missing, damaged, old or of other models."""
    prints = loaded.fingerprints
    if (home / COSTS).is_file() and not of(home, prints):
        # What the workflow or the command measured is of the folders' files.
        if not loaded.folders:
            raise UserError(
                f"calibration {home}: it is of other models, or of files: what `dynatree calibrate --out` or the "
                "workflow measured is for models that are given as folders; give these, or take calibrate()"
            )
        prints = checkpoint.fingerprints(loaded.folders)
    return Calibration.read(home, prints, dict(machine))


def of(home: Path, fingerprints: Mapping[str, str]) -> bool:
    """Whether the calibration in `home` is there, and of models with these fingerprints."""
    if not (home / COSTS).is_file():
        return False
    with readable(str(home / COSTS)):
        return bool(files.read_json(home / COSTS).get("models") == dict(fingerprints))


def folder(fingerprints: Mapping[str, str], machine: Mapping[str, Any]) -> Path:
    """In the user's cache: of these models, on this machine, in the format that its description names.

    What an older version of this library kept is not looked at.
    """
    return files.cache_folder() / "calibration" / files.digest([dict(fingerprints), dict(machine), VERSION])
