"""The operation of tree_attention.cpp: compiled for this processor when it is first wanted, kept in the user's cache.

It takes a C++ compiler. Where none is, or nothing can be compiled or kept, OpenVINO's paged attention is used
(parts.py): to the bit as well, but of other bits, and slower. DYNATREE_ATTENTION says which of KINDS it is to be.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dynatree import files
from dynatree.errors import UserError

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
VARIABLE = "DYNATREE_ATTENTION"
# Our own, and OpenVINO's.
KINDS = TREE, PAGED = ("tree", "paged")
# What is looked for, if CXX does not say.
_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++20", "-shared", "-fPIC")
# Seconds; it takes five.
_MOST_SECONDS = 300


@cache
def kind() -> str:
    """Which attention graphs have in this process, one of KINDS. Raises UserError for another in VARIABLE."""
    asked = os.environ.get(VARIABLE) or TREE
    if asked not in KINDS:
        raise UserError(f"{VARIABLE}: {asked!r} is unknown; choose from {', '.join(KINDS)}")
    return TREE if asked == TREE and _library() else PAGED


def node(inputs: list[Any], **attributes: Any) -> Any:
    """What the operation makes of `inputs`, as tree_attention.cpp says."""
    return _factory().create("TreeAttention", inputs, attributes).output(0)


@cache
def _factory() -> Any:
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory()
    factory.add_extension(_library())
    return factory


@cache
def _library() -> Path | None:
    """The operation, compiled; None: it cannot be."""
    compiler = next((found for name in _compilers() if (found := shutil.which(name))), None)
    if sys.platform != "linux" or compiler is None:
        log.info("attention: OpenVINO's own; a faster one takes a C++ compiler on Linux (%s)", ", ".join(_COMPILERS))
        return None
    try:
        path = _place(compiler)
        if not path.is_file():
            log.info("attention: compiling it for this processor with %s, once", compiler)
            with files.replacing(path) as temporary:
                _run([compiler, *_OPTIONS, *_openvino(), str(SOURCE), "-o", str(temporary), *_linked()])
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        log.warning("attention: OpenVINO's own, which is slower; %s: %s", compiler, said[0] if said else "failed")
        return None
    return path


def _compilers() -> tuple[str, ...]:
    return (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS


def _place(compiler: str) -> Path:
    """Where it is kept: by its source, how it is compiled, and the processor, of which a home may have several."""
    with Path("/proc/cpuinfo").open() as lines:
        flags = next((line for line in lines if line.startswith("flags")), "")
    told = [SOURCE.read_text(), _run([compiler, "--version"]), *_OPTIONS, version("openvino"), flags]
    return files.cache_folder() / "attention" / f"{hashlib.sha256('|'.join(told).encode()).hexdigest()[:16]}.so"


def _run(command: list[str]) -> str:
    """What a command says. Raises SubprocessError and OSError."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_MOST_SECONDS).stdout


def _package() -> Path:
    import openvino

    return Path(openvino.__file__).parent


def _openvino() -> list[str]:
    return ["-D_GLIBCXX_USE_CXX11_ABI=1", "-isystem", str(_package() / "include")]


def _linked() -> list[str]:
    """The libraries that the process has already, by the names that they have there."""
    libraries = _package() / "libs"
    names = [sorted(libraries.glob(f"{name}.so.*"))[-1:] for name in ("libopenvino", "libtbb")]
    return [f"-L{libraries}", *(f"-l:{path.name}" for found in names for path in found)]
