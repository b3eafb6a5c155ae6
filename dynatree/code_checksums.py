"""The code that a script computes with: its files, and checksums that comments and docstrings leave alone.

A result is made anew when one of these checksums changes, so that words can be mended without measuring again. A
checksum is of the syntax tree, not of the file: its nodes with their fields, but for those that are empty. Versions of
Python differ in which empty fields `ast.dump` shows and in how `ast.unparse` quotes f-strings, not in this.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dynatree.files import sha256

PACKAGE, LAZY = "dynatree", ("__getattr__", "__dir__")


def used(root: Path, script: str, modules: Iterable[str] = ()) -> list[str]:
    """The script and the files of the checkout `root` that it imports, and with it `modules`: paths below `root`."""
    found: set[Path] = set()
    waiting = [root / script, *(path for module in modules for path in _files(root, module))]
    while waiting:
        path = waiting.pop()
        if path not in found and counts(path):
            found.add(path)
            imported = _imported(path.read_bytes(), path.parent.relative_to(root).parts)
            waiting += [other for module in imported for other in _files(root, module)]
    return sorted(path.relative_to(root).as_posix() for path in found)


def counts(path: Path) -> bool:
    """Whether a result may depend on a file: on each but an `__init__` that only names and describes.

    Such a one holds a docstring, private names, `__version__`, imports of other libraries, `__getattr__` and `__dir__`.
    What it gives on demand is found where it is imported from its own module.
    """
    return path.name != "__init__.py" or not all(_only_names(node) for node in ast.parse(path.read_bytes()).body)


def listing(paths: Iterable[str | Path]) -> str:
    """A line a file, as `sha256sum` writes them: checksum and path."""
    return "".join(f"{checksum(Path(path))}  {path}\n" for path in paths)


def checksum(path: Path) -> str:
    """SHA-256, in hexadecimal, of Python code without comments and docstrings; of any other file, of its bytes."""
    return _of_code(path.read_bytes()) if path.suffix == ".py" else sha256(path)


# Kept by content: the files of the library belong to many sets.
@cache
def _of_code(code: bytes) -> str:
    return hashlib.sha256(_written(ast.parse(code)).encode()).hexdigest()


def _written(value: Any) -> str:
    """A syntax tree as text, without its docstrings and its empty fields."""
    if isinstance(value, list):
        return f"[{', '.join(_written(part) for part in value if not _is_docstring(part))}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = (f"{name}={_written(part)}" for name, part in ast.iter_fields(value) if part is not None and part != [])
    return f"{type(value).__name__}({', '.join(fields)})"


def _is_docstring(node: Any) -> bool:
    """Whether a statement is a string alone, which does nothing wherever it stands."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _only_names(node: ast.stmt) -> bool:
    """Whether a statement of an `__init__` neither computes anything nor names what another file may use."""
    if isinstance(node, ast.FunctionDef):
        return node.name in LAZY
    if isinstance(node, ast.Import | ast.ImportFrom):
        own = any(module.split(".")[0] == PACKAGE for module in _names(node, ()))
        return not own and not getattr(node, "level", 0)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(target, ast.Name) and target.id.startswith("_") for target in targets)
    for_types_alone = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return for_types_alone or _is_docstring(node)


@cache
def _imported(code: bytes, package: tuple[str, ...]) -> frozenset[str]:
    """Names of modules, and of what may be modules, that code of a package imports, within functions, too."""
    statements = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom))
    return frozenset(name for node in statements for name in _names(node, package))


def _names(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = package[: len(package) - node.level + 1] if node.level else ()
    module = ".".join([*above, node.module or ""]).rstrip(".")
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def _files(root: Path, module: str) -> Iterator[Path]:
    """The files of a module of the library and of the packages that it lies in; none for what is no module of it."""
    parts = module.split(".")
    if parts[0] == PACKAGE:
        packages = (root.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1))
        yield from (path for path in (*packages, root.joinpath(*parts).with_suffix(".py")) if path.is_file())
