"""A plug-in is one file of a folder, found by its file name; a name that is missing lists those that exist."""

import importlib
import pkgutil
from types import ModuleType

from dynatree.errors import UserError


def names(folder: str) -> list[str]:
    """Names of the plug-ins in the sub-package `folder` ("policies", "figures", ...), sorted."""
    package = importlib.import_module(f"dynatree.{folder}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(folder: str, name: str) -> ModuleType:
    """The module `dynatree/<folder>/<name>.py`. Raises UserError with the choices if there is none."""
    choices = names(folder)
    if name not in choices:
        raise UserError(f"{folder}: no {name!r}; choose one of {', '.join(choices)}")
    return importlib.import_module(f"dynatree.{folder}.{name}")
