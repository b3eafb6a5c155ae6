"""What a rule of a job graph is written with: its own text and the helpers that it uses, and a checksum of each.

A result is made anew when one of them changes, and not when another rule does, a helper of others, or a comment: each
part is read as Python, so that comments, docstrings and line breaks do not count (code_checksums.py).
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent

from dynatree.code_checksums import of_code

COMMON = "common.smk"
# Where, when and how a job runs, and where it talks; not what it makes.
APART = ("log", "conda", "priority", "resources", "threads", "message")
# A block of Snakemake's own: a rule, or a statement with lines below it. Python's blocks are left as they are.
BLOCK = re.compile(r"^( *)(?!(?:if|elif|else|for|while|with|def|class|try|except|finally)\b)(?:rule )?(\w+):$")


def files(folder: Path) -> dict[str, Path]:
    """The file that has each rule of the folder."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.smk")):
        found |= dict.fromkeys(re.findall(r"^ *rule (\w+):$", path.read_text(encoding="utf-8"), re.M), path)
    return found


def counted(folder: Path) -> dict[str, Path]:
    """Of those, the rules that make something of the study, not checksums."""
    return {rule: path for rule, path in files(folder).items() if not rule.startswith("library")}


def files_of(rule: str, folder: Path) -> str:
    """What a rule says of its files in and out."""
    text = files(folder)[rule].read_text(encoding="utf-8")
    return "; ".join(ast.unparse(tree) for name, tree in _directives(rule, text) if name in ("input", "output"))


def scripts(folder: Path) -> list[str]:
    """The scripts that the folder's rules run."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.smk"))]
    return sorted({script for text in texts for script in re.findall(r"python (workflow/scripts/\w+\.py) ", text)})


def listing(rule: str, folder: Path) -> str:
    """A line for the rule and one for each helper that it uses: checksum and name."""
    path = files(folder)[rule]
    helpers: dict[str, ast.stmt] = {}
    for file in (path.with_name(COMMON), path):
        helpers |= _helpers(file.read_text(encoding="utf-8"))
    own = [*_directives(rule, path.read_text(encoding="utf-8"))]
    used: set[str] = set()
    waiting = {name for _, tree in own for name in _names(tree)}
    while waiting := {name for name in waiting if name in helpers and name not in used}:
        used |= waiting
        waiting = {other for name in waiting for other in _names(helpers[name])}
    parts = {f"rule {rule}": "\n".join(f"{name} = {ast.unparse(tree)}" for name, tree in own)}
    parts |= {name: ast.unparse(helpers[name]) for name in sorted(used)}
    return "".join(f"{of_code(code.encode())}  {name}\n" for name, code in parts.items())


def _directives(rule: str, text: str) -> Iterator[tuple[str, ast.expr]]:
    """Name and arguments, as those of a call, of what a rule is asked for; but for APART."""
    lines = iter(text.splitlines())
    start = next(line for line in lines if re.fullmatch(rf" *rule {rule}:", line))
    indent = len(start) - len(start.lstrip())
    body = []
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        body.append(line)
    parts = re.split(r"^(\w+):", dedent("\n".join(body)), flags=re.M)
    for name, arguments in zip(parts[1::2], parts[2::2], strict=True):
        if name not in APART:
            yield name, ast.parse(f"{name}({arguments}\n)", mode="eval").body


# A file of helpers is read for each rule.
@cache
def _helpers(text: str) -> dict[str, ast.stmt]:
    """Functions and constants that a file defines at its top, by name."""
    found: dict[str, ast.stmt] = {}
    for statement in ast.parse(_python(text)).body:
        if isinstance(statement, ast.FunctionDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            names = {node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)}
            found |= dict.fromkeys(names, statement)
    return found


def _python(text: str) -> str:
    """A file of rules without Snakemake's own blocks."""
    kept, inside = [], -1
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if inside >= 0 and (not line.strip() or indent > inside):
            continue
        block = BLOCK.match(line)
        inside = indent if block else -1
        kept.append(f"{block[1]}pass" if block else line)
    return "\n".join(kept)


def _names(tree: ast.AST) -> set[str]:
    """Names that a piece of code uses, but for its own arguments."""
    nodes = [*ast.walk(tree)]
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - own
