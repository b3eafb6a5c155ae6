"""The code that a script computes with: its files, and checksums that comments and docstrings leave alone.

A result is made anew when one of these checksums changes, so that words can be mended without measuring again. A
checksum is of the syntax tree, not of the file: its nodes with their fields, but for those that are empty. Versions of
Python differ in which empty fields `ast.dump` shows and in how `ast.unparse` quotes f-strings, not in this.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dynatree.files import read_json, sha256, write_json

# What is known of code by its content, below a checkout.
KEPT = ".cache/code"

PACKAGE, LAZY, IMPORTS = "dynatree", ("__getattr__", "__dir__"), (ast.Import, ast.ImportFrom)


class Facts(NamedTuple):
    """Of a file of code: its checksum, and the modules that it imports."""

    checksum: str
    modules: list[str]


class Checkout:
    """The code below the folder `root` as it stands: each file is read once.

    With `keeps` what a file holds is kept by its content in KEPT: to parse all of them takes a second or two, and a job
    graph is made for every stage.
    """

    def __init__(self, root: Path, keeps: bool = False):
        self.root, self._kept = root, root / KEPT if keeps else None
        self._facts: dict[Path, Facts] = {}
        self._modules: dict[str, list[Path]] = {}

    def used(self, script: str, modules: Iterable[str] = ()) -> list[str]:
        """The script and the files of the library that it imports, and with it `modules`: paths below the root."""
        found: set[Path] = set()
        waiting = [self.root / script, *(path for module in modules for path in self._files(module))]
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.add(path)
                waiting += self._imported(path)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def listing(self, paths: Iterable[str]) -> str:
        """As `listing`, of `paths` below the root."""
        return "".join(_line(self._checksum(self.root / path), path) for path in paths)

    def _checksum(self, path: Path) -> str:
        return self._read(path).checksum if path.suffix == ".py" else checksum(path)

    def _imported(self, path: Path) -> list[Path]:
        modules = self._read(path).modules if path.suffix == ".py" else []
        return [other for module in modules for other in self._files(module)]

    def _read(self, path: Path) -> Facts:
        if path not in self._facts:
            self._facts[path] = _facts(path.read_bytes(), path.parent.relative_to(self.root).parts, self._kept)
        return self._facts[path]

    def _files(self, module: str) -> list[Path]:
        """The files of a module and of the packages that it lies in, if they count; none for what is no module here."""
        if module not in self._modules:
            parts = module.split(".")
            place = self.root.joinpath(*parts)
            above = self._files(".".join(parts[:-1])) if len(parts) > 1 else []
            # A package may have parts that are compiled.
            own = [place / "__init__.py", *sorted(place.glob("*.[ch]pp")), place.with_suffix(".py")]
            own = own if parts[0] == PACKAGE else []
            self._modules[module] = [*above, *(path for path in own if path.is_file() and counts(path))]
        return self._modules[module]


def counts(path: Path) -> bool:
    """Whether a result may depend on a file: on each but an `__init__` that only names and describes.

    Such a one holds a docstring, private names, `__version__`, imports of other libraries, `__getattr__` and `__dir__`.
    What it gives on demand is found where it is imported from its own module.
    """
    return path.name != "__init__.py" or not all(_only_names(node) for node in ast.parse(path.read_bytes()).body)


def _facts(code: bytes, package: tuple[str, ...], kept: Path | None) -> Facts:
    """What code in a package holds: by this file as it stands, or as it was `kept` by one that stood so."""
    if kept is None:
        tree = ast.parse(code)
        statements = [node for node in ast.walk(tree) if isinstance(node, IMPORTS)]
        return Facts(_of_tree(tree), sorted({name for node in statements for name in _names(node, package)}))
    own = Path(__file__).read_bytes()
    place = kept / hashlib.sha256(b"\0".join([own, "/".join(package).encode(), code])).hexdigest()
    if not place.is_file():
        write_json(place, _facts(code, package, None))
    return Facts(*read_json(place))


def listing(paths: Iterable[str | Path]) -> str:
    """A line a file, as `sha256sum` writes them: checksum and path."""
    return "".join(_line(checksum(Path(path)), path) for path in paths)


def _line(found: str, path: str | Path) -> str:
    return f"{found}  {path}\n"


def checksum(path: Path) -> str:
    """SHA-256, in hexadecimal, of Python code without comments and docstrings; of any other file, of its bytes."""
    return of_code(path.read_bytes()) if path.suffix == ".py" else sha256(path)


# Kept by content: the files of the library belong to many sets.
@cache
def of_code(code: bytes) -> str:
    """SHA-256, in hexadecimal, of Python code without comments and docstrings."""
    return _of_tree(ast.parse(code))


def _of_tree(tree: ast.Module) -> str:
    return hashlib.sha256(_written(tree).encode()).hexdigest()


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
    if isinstance(node, IMPORTS):
        own = any(module.split(".")[0] == PACKAGE for module in _names(node, ()))
        return not own and not getattr(node, "level", 0)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(target, ast.Name) and target.id.startswith("_") for target in targets)
    for_types_alone = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return for_types_alone or _is_docstring(node)


def _names(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = package[: len(package) - node.level + 1] if node.level else ()
    module = ".".join([*above, node.module or ""]).rstrip(".")
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]
