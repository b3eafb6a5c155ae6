"""A plug-in is one file of a folder, found by its file name; a name that is missing lists those that exist."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from dynatree.errors import UserError


def names(folder: str) -> list[str]:
    """Names of the plug-ins in the sub-package `folder` ("policies", "data.sources", ...), sorted. Imports none."""
    place = Path(__file__).parent.joinpath(*folder.split("."))
    return sorted(module.name for module in pkgutil.iter_modules([str(place)]) if not module.ispkg)


def load(folder: str, name: str) -> ModuleType:
    """The module `dynatree/<folder>/<name>.py`. Raises UserError with the choices if there is none."""
    choices = names(folder)
    if name not in choices:
        raise UserError(f"{folder.rpartition('.')[2]}: no {name!r}; choose one of {', '.join(choices)}")
    return importlib.import_module(f"dynatree.{folder}.{name}")
