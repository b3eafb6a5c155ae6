"""params.yaml: read once, at the edge, and checked, with errors that name the key, the value and the choices.

Imports neither torch nor transformers, so that a workflow tool can read parameters in no time; knobs are checked by
the plug-ins that take them (plugin_checks.py), which does import them.
"""

from pathlib import Path
from typing import Any

import yaml

from dynatree import files
from dynatree.config import checked
from dynatree.errors import UserError
from dynatree.study import consistency
from dynatree.study.sections import Params


def default_path() -> Path:
    """params.yaml of the working directory, else the one that ships with the package or is in its checkout.

    In a folder of another project its params.yaml is not meant: that of this one has a line `methods:`.
    """
    local = Path("params.yaml")
    if local.is_file() and "\nmethods:" in local.read_text(encoding="utf-8", errors="replace"):
        return local
    return _packaged_path()


def _packaged_path() -> Path:
    here = files.PACKAGE
    return next(path for path in (here / "params.yaml", here.parent / "params.yaml") if path.is_file())


def packaged() -> Params:
    """The checked parameters that ship with the package, or are in its checkout, whatever the working directory."""
    return read(_packaged_path())


class _Loader(yaml.SafeLoader):
    """YAML with each key once; of a key that stands there twice, YAML's own loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                key, line = key_node.value, key_node.start_mark.line + 1
                if key in lines:
                    raise yaml.YAMLError(f"line {line}: key {key!r} stands there twice, first in line {lines[key]}")
                lines[key] = line
        return super().construct_mapping(node, deep)


def load(path: str | Path) -> Any:
    """The plain values of a YAML file. Raises UserError: no file, no YAML, a key that stands there twice."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def read(path: str | Path | None = None, scale: str | None = None) -> Params:
    """The checked parameters of a YAML file, at its own scale or at `scale`.

    Raises UserError: as `load`, and a wrong key or value.
    """
    path = Path(path) if path else default_path()
    values = load(path)
    return check({**values, "scale": scale} if scale and isinstance(values, dict) else values, str(path))


def check(raw: Any, origin: str = "params.yaml") -> Params:
    """Parameters from plain values, checked except for what needs torch, with what the active scale has instead."""
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: expected keys and values, got {type(raw).__name__}")
    params = checked(origin, lambda values: Params(**values), raw)
    return checked(origin, consistency.settle, params)
