"""Models, calibration and decoder of a method, from folders and the method's entry in params.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dynatree import files
from dynatree.costs.calibration import COSTS, Calibration
from dynatree.decoding import Decoder, build
from dynatree.engine import checkpoint, kept
from dynatree.engine.machine import describe_machine
from dynatree.errors import readable


class Loaded(NamedTuple):
    """A method, ready to decode."""

    models: checkpoint.Pair
    decoder: Decoder


def load(
    folders: dict[str, Path],
    calibration: Path | None,
    decoder: str,
    knobs: dict[str, Any],
    dtype: str,
    device: str,
    requests: int = 1,
) -> Loaded:
    """The models in the `folders` of `target` and, if there is one, `drafter`, and a decoder on them.

    They are prepared for so many requests together.
    `calibration` is the folder of what was measured for them. Raises UserError if anything does not fit.
    """
    pair = kept.pair(folders, dtype, device, requests)
    measured = None
    if calibration:
        fingerprints = checkpoint.fingerprints(folders)
        measured = Calibration.read(calibration, fingerprints, describe_machine(dtype, device))
    return Loaded(pair, build(pair.target, pair.drafter, decoder, knobs, measured))


def calibration_beside(folders: Mapping[str, Path], dtype: str) -> Path | None:
    """The folder of what the workflow measured beside these models, if it was for these in this format."""
    top = folders["target"].resolve().parent.parent / "results" / "calibration"
    asked = checkpoint.fingerprints(folders)
    for home in (top / dtype, top / files.READING / dtype):
        if not (home / COSTS).is_file():
            continue
        with readable(str(home / COSTS)):
            measured = files.read_json(home / COSTS).get("models", {})
        if all(measured.get(role) == fingerprint for role, fingerprint in asked.items()):
            return home
    return None
