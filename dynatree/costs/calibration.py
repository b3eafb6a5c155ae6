"""What was measured of a machine and a pair, as three files of one folder: costs, step rates, costs of batches."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from dynatree import files
from dynatree.costs.cost_table import BatchTable, CostTable
from dynatree.costs.step_rates import StepRates
from dynatree.errors import UserError

log = logging.getLogger(__name__)

# Parts of a machine's description that move the table; versions of Python do not.
_DECISIVE = ("processor", "cores", "gpu", "threads", "dtype", "torch", "transformers", "openvino", "kernels")
COSTS, STEPS, BATCHES = "costs.json", "steps.json", "batches.json"
# Raised where what is measured, or how, changes what the numbers mean.
VERSION = 9

_DAMAGED = (OSError, LookupError, ValueError, TypeError, AttributeError, ValidationError)


def read_rates(folder: Path) -> StepRates:
    """What `Calibration.write` wrote of them. Raises UserError if it is missing, damaged or old."""
    try:
        found = files.read_json(folder / STEPS)
        version = found.get("version", 0)
        # Before the rest, which another version has other parts of.
        rates = StepRates(**found) if version == VERSION else None
    except _DAMAGED as error:
        raise UserError(f"calibration {folder}: {str(error).splitlines()[0]}; measure it again") from error
    if rates is None:
        raise UserError(f"calibration {folder}: of version {version}, this is {VERSION}; measure it again")
    return rates


class Calibration(NamedTuple):
    """What a machine and a pair were measured to be: seconds of forwards, and how often drafted tokens are right."""

    costs: CostTable
    step_rates: StepRates

    def shared(self, rows: int, drawn: bool = False) -> "Calibration":
        """What it is for one of `rows` requests that are decoded together, and whose tokens may be `drawn`."""
        costs = self.costs.drawn() if drawn else self.costs
        return self._replace(costs=costs if rows == 1 else costs.shared(rows))

    def of(self, temperature: float, processed: bool) -> "Calibration":
        """What it is for text of this kind, as `StepRates.at`."""
        return self._replace(step_rates=self.step_rates.at(temperature, processed))

    def write(self, folder: Path) -> None:
        """Write `costs.json`, `steps.json` and, if batches were measured, `batches.json`."""
        files.write_json(folder / STEPS, {**self.step_rates.model_dump(mode="json"), "version": VERSION})
        if self.costs.batches:
            self.write_batches(folder)
        # Last: where it is, a calibration is looked for.
        files.write_json(folder / COSTS, self.costs.model_dump(mode="json", exclude={"batches"}))

    def write_batches(self, folder: Path) -> None:
        """Write `batches.json` alone."""
        files.write_json(folder / BATCHES, self.costs.batch_table.model_dump(mode="json"))

    @staticmethod
    def read(folder: Path, models: dict[str, str], machine: dict[str, Any]) -> "Calibration":
        """What `write` wrote, for the pair with these fingerprints.

        Raises UserError if it is missing, damaged, old, or of other models; a table of another machine is used with a
        warning, since it may choose trees badly but never changes an output. Batches measured with other models or on
        another machine than the rest are left out, with a warning: theirs is a file of its own.
        """
        try:
            table = files.read_json(folder / COSTS)
            if (folder / BATCHES).is_file():
                batched = BatchTable(**files.read_json(folder / BATCHES))
                other = _differing(batched.machine, table["machine"])
                if batched.models == table["models"] and not other:
                    table["batches"] = batched.batches
                else:
                    what = f"another {', '.join(other)}" if other else "other models"
                    log.warning("calibration %s: %s is of %s, and not used", folder, BATCHES, what)
            costs = CostTable(**table)
        except _DAMAGED as error:
            raise UserError(f"calibration {folder}: {str(error).splitlines()[0]}; measure it again") from error
        calibration = Calibration(costs, read_rates(folder))
        measured = calibration.costs.models
        for role, fingerprint in models.items():
            if measured.get(role) != fingerprint:
                raise UserError(
                    f"calibration {folder}: it was measured with {role} {measured.get(role, 'none')[:12]}, "
                    f"this one is {fingerprint[:12]}; measure it again"
                )
        if differing := _differing(calibration.costs.machine, machine):
            there, here = ([m.get(key) for key in differing] for m in (calibration.costs.machine, machine))
            log.warning("calibration %s: measured with %s %s, here %s", folder, ", ".join(differing), there, here)
        return calibration


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What of two machines moves a table."""
    return [key for key in _DECISIVE if one.get(key) != other.get(key)]
