"""Which code a result depends on: files by what they do, not by what they say."""

import ast
import shutil
from pathlib import Path

import pytest

from dynatree.code_checksums import KEPT, Checkout, checksum, counts, listing

ROOT = Path(__file__).resolve().parents[1]

CODE = '''"""What it is."""

from functools import cache

SIZE = 3
NAMES: dict[str, str] = {}


class Table:
    """Rows."""

    title = "rows"

    @cache
    def first(self, count: int = 1) -> str:
        """The first rows."""
        return f"{self.title}: {count}"  # joined
'''
LAZY = '''"""A package that gives names on demand."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynatree.deep.model import Model

__version__ = "1"
_PLACES = {"Model": "dynatree.deep.model"}


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    from dynatree.deep import model

    return [*_PLACES, *dir(model)]
'''


def of(folder: Path, text: str) -> str:
    path = folder / "code.py"
    path.write_text(text, encoding="utf-8")
    return checksum(path)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("What it is.", "What it was meant to be."),
        ('    """Rows."""\n', ""),
        ('        """The first rows."""\n', '        """The first rows.\n\n        Not the last.\n        """\n'),
        ("  # joined", ""),
        ("SIZE = 3\n", "# How many.\nSIZE = 3\n\n"),
        ("count: int = 1) -> str:", "\n        count: int = 1,\n    ) -> str:"),
        ('"rows"', "'rows'"),
    ],
)
def test_words_and_layout_leave_a_checksum(tmp_path: Path, written: str, instead: str) -> None:
    """Guards against hours of measuring again after a comment or a docstring was mended."""
    assert written in CODE
    assert of(tmp_path, CODE.replace(written, instead)) == of(tmp_path, CODE)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("SIZE = 3", "SIZE = 4"),
        ("SIZE = 3", "SIZE = 3.0"),
        ("SIZE = 3", "SIZE = None"),
        ("count: int = 1", "count: int = 2"),
        ("count: int = 1", "count: int"),
        ("    @cache\n", ""),
        ('"rows"', '"lines"'),
        ('{self.title}: {count}"', '{self.title} {count}"'),
        ("{count}", "{count!r}"),
        ("class Table:", "class Table(dict):"),
        ("NAMES: dict[str, str] = {}", "NAMES: dict[str, str]"),
        ("SIZE = 3\nNAMES: dict[str, str] = {}\n", "NAMES: dict[str, str] = {}\nSIZE = 3\n"),
    ],
)
def test_what_code_does_changes_a_checksum(tmp_path: Path, written: str, instead: str) -> None:
    """Guards against results of other code that count as up to date."""
    assert written in CODE
    assert of(tmp_path, CODE.replace(written, instead)) != of(tmp_path, CODE)


def test_a_checksum_is_the_same_in_every_version_of_python(tmp_path: Path) -> None:
    """Guards against everything measured again under another Python, whose trees have other empty fields."""
    assert of(tmp_path, CODE) == "fd719de69072ce703b181597d66832fb476de8ab09f14c4ef38bb39fd671c5c8"


def test_other_files_count_by_their_bytes(tmp_path: Path) -> None:
    """Guards against a file that is no code being parsed as such, or left out."""
    path = tmp_path / "lines.txt"
    path.write_text("# one\n", encoding="utf-8")
    before = listing([path])
    assert before.endswith(f"  {path}\n")
    path.write_text("# two\n", encoding="utf-8")
    assert listing([path]) != before


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A library whose package gives names on demand, and a script that uses one of its modules."""
    for path, text in {
        "dynatree/__init__.py": LAZY,
        "dynatree/deep/__init__.py": '"""Says what it is."""\n',
        "dynatree/deep/model.py": "from dynatree import tree\n",
        "dynatree/tree.py": "def mask():\n    from dynatree.rules import base\n",
        "dynatree/rules/__init__.py": "from .base import Rule\n",
        "dynatree/rules/base.py": "import torch\n",
        "dynatree/rules/extra.py": "from .. import tree\n",
        "scripts/run.py": "import os\nfrom dynatree.tree import mask\n",
        "scripts/say.py": "from dynatree import __version__\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return tmp_path


def test_names_on_demand_draw_nothing_in(checkout: Path) -> None:
    """Guards against the package's own lazy names, with which every job would depend on the whole library."""
    assert Checkout(checkout).used("scripts/say.py") == ["scripts/say.py"]
    assert not counts(checkout / "dynatree/__init__.py")


@pytest.mark.parametrize(
    "more", ["print()", "def helper(): pass", "from dynatree.deep import model", "from . import deep", "SIZE = 3"]
)
def test_an_init_with_code_counts(checkout: Path, more: str) -> None:
    """Guards against a package that computes something, or draws a module in, unnoticed."""
    path = checkout / "dynatree/__init__.py"
    path.write_text(f"{LAZY}\n\n{more}\n", encoding="utf-8")
    assert counts(path)


def test_a_script_uses_what_it_imports_and_its_plug_ins(checkout: Path) -> None:
    """Guards against an import within a function, a package's own code or a relative import that is not seen."""
    rules = ["dynatree/rules/__init__.py", "dynatree/rules/base.py"]
    assert Checkout(checkout).used("scripts/run.py") == [*rules, "dynatree/tree.py", "scripts/run.py"]
    with_plug_in = Checkout(checkout).used("scripts/say.py", ["dynatree.rules.extra"])
    assert with_plug_in == [*rules, "dynatree/rules/extra.py", "dynatree/tree.py", "scripts/say.py"]


def test_a_package_has_its_compiled_parts(checkout: Path) -> None:
    """Guards results against code that is no Python, which lies beside the modules that compile it."""
    places = [checkout / "dynatree/rules" / name for name in ("base.hpp", "rules.cpp")]
    for path in places:
        path.write_text("// one\n", encoding="utf-8")
    used = Checkout(checkout).used("scripts/run.py")
    assert {path.relative_to(checkout).as_posix() for path in places} <= set(used)
    for path in places:
        before = Checkout(checkout).listing(used)
        path.write_text("// two\n", encoding="utf-8")
        assert Checkout(checkout).listing(used) != before


def test_what_is_kept_of_code_is_found_by_its_content(checkout: Path) -> None:
    """Guards against imports and checksums of yesterday's code, and of the same text in another package."""
    kept = checkout / KEPT

    def told(keeps: bool) -> tuple[list[str], str]:
        code = Checkout(checkout, keeps)
        used = code.used("scripts/run.py", ["dynatree.rules.same", "dynatree.deep.same"])
        return used, code.listing(used)

    (checkout / "dynatree/rules/same.py").write_text("from . import base, model\n", encoding="utf-8")
    first = told(True)
    assert first == told(False)
    before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert told(True) == first and len(before) == len(first[0])
    shutil.copy(checkout / "dynatree/rules/same.py", checkout / "dynatree/deep/same.py")
    (checkout / "dynatree/tree.py").write_text("SIZE = 3\n", encoding="utf-8")
    second = told(True)
    assert second == told(False) != first
    assert "dynatree/deep/model.py" in second[0] and "dynatree/deep/model.py" not in first[0]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_library_imports_every_name_from_its_own_module() -> None:
    """Guards against a name that a package gives on demand: the file that it comes from would be missed."""
    for path in [*(ROOT / "dynatree").rglob("*.py"), *(ROOT / "workflow/scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynatree"):
                package = ROOT / str(node.module).replace(".", "/")
                if (package / "__init__.py").is_file() and not counts(package / "__init__.py"):
                    for name in {alias.name for alias in node.names} - {"__version__"}:
                        found = (package / f"{name}.py").is_file() or (package / name).is_dir()
                        assert found, f"{path.relative_to(ROOT)}: {node.module}.{name}"
