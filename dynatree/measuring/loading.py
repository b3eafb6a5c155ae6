"""Models, calibration and decoder of a method, from folders and the method's entry in params.yaml."""

from pathlib import Path
from typing import Any

from dynatree.costs.calibration import Calibration
from dynatree.decoding import build
from dynatree.engine import checkpoint
from dynatree.engine.language_model import LanguageModel
from dynatree.engine.machine import describe_machine


def load_all(
    folders: dict[str, Path], calibration: Path | None, decoder: str, knobs: dict[str, Any], dtype: str, device: str
) -> tuple[dict[str, LanguageModel], Any]:
    """(models, decoder) from the model `folders` of `target` and, if there is one, `drafter`.

    `calibration` is the folder of what was measured for them. Raises UserError if anything does not fit.
    """
    loaded = checkpoint.load_pair(folders, dtype, device)
    measured = None
    if calibration:
        fingerprints = {role: checkpoint.fingerprint(folder) for role, folder in folders.items()}
        measured = Calibration.read(calibration, fingerprints, describe_machine(dtype, device))
    return loaded, build(loaded["target"], loaded.get("drafter"), decoder, knobs, measured)


def load(
    folders: dict[str, Path], calibration: Path | None, decoder: str, knobs: dict[str, Any], dtype: str, device: str
) -> tuple[LanguageModel, Any]:
    """(target, decoder): `load_all` for those who need not look at the drafter."""
    models, built = load_all(folders, calibration, decoder, knobs, dtype, device)
    return models["target"], built
