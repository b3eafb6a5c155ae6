"""Operations of our own in C++: compiled for this processor when they are first wanted, kept in the user's cache.

It takes a C++ compiler. Where none is, or nothing can be compiled or kept, OpenVINO's operations are used (parts.py):
to the bit as well, but of other bits, and slower. DYNATREE_KERNELS says which of KINDS it is to be.
"""

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from dynatree import files
from dynatree.errors import UserError

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
VARIABLE = "DYNATREE_KERNELS"
KINDS = OWN, OPENVINO = ("own", "openvino")
# What a processor has that multiplies bytes, as Linux names it.
_BYTES = ("avx512_vnni", "avx512bw")
# What is looked for, if CXX does not say.
_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++20", "-shared", "-fPIC")
_DEFINED = ("-D_GLIBCXX_USE_CXX11_ABI=1",)
# Nothing is left undefined, and it stays until the process ends: compiled graphs may outlive who asked for them.
_LINKED = ("-Wl,-z,defs", "-Wl,-z,nodelete")
# Seconds; it takes five.
_MOST_SECONDS = 300
# Asked by several threads at once, of which one compiles.
_lock = RLock()

Functions = TypeVar("Functions")


def kind() -> str:
    """Whose operations graphs have in this process, one of KINDS. Raises UserError for another in VARIABLE."""
    with _lock:
        return _kind()


@cache
def _kind() -> str:
    asked = os.environ.get(VARIABLE) or OWN
    if asked not in KINDS:
        raise UserError(f"{VARIABLE}: {asked!r} is unknown; choose from {', '.join(KINDS)}")
    return OWN if asked == OWN and library() else OPENVINO


def multiplies_bytes() -> bool:
    """Whether there is an operation for products with weights in 8 and 4 bits."""
    return kind() == OWN and {*_BYTES} <= {*_flags().split()}


def attention(inputs: list[Any], layer: int, heads: int, groups: int, size: int, eps: float) -> Any:
    """Attention over trees of `inputs`, as attention.hpp says."""
    attributes = {"layer": layer, "heads": heads, "groups": groups, "size": size, "eps": eps}
    return _factory().create("TreeAttention", inputs, attributes)


def product(inputs: list[Any], outputs: int, bits: int, eps: float = 0.0, threads: int = 0) -> Any:
    """Of `inputs` x [n, i], packed weights (packing.py) of so many outputs, and maybe a norm, as product.hpp says."""
    return _factory().create("Product", inputs, {"outputs": outputs, "bits": bits, "eps": eps, "threads": threads})


def layers(inputs: list[Any], **attributes: Any) -> Any:
    """All layers of `inputs`, as layers.hpp says."""
    return _factory().create("Layers", inputs, attributes)


def in_use() -> bool:
    """Whether a graph of this process has operations of our own."""
    return _factory.cache_info().currsize > 0


def functions(of: Callable[[ctypes.CDLL], Functions]) -> Functions | None:
    """Those `of` the library that are called by themselves; None: no graph of this process has operations of our own,
    whose library it is, and nothing is compiled for them."""
    return made(of) if in_use() else None


@cache
def made(of: Callable[[ctypes.CDLL], Functions]) -> Functions:
    """The same of the library, which has to be there."""
    return of(ctypes.CDLL(str(library())))


@cache
def _factory() -> Any:
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory()
    factory.add_extension(library())
    return factory


@cache
def library() -> Path | None:
    """The operations, compiled; None: they cannot be."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        log.info("kernels: OpenVINO's; faster ones are for Linux on x86-64")
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        path = _place(compiler)
        if not (path.is_file() and _loads(path)):
            log.info("kernels: compiling them for this processor with %s, once", compiler[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / path.name
                _run([*compiler, *_OPTIONS, *_openvino(), str(SOURCES / "kernels.cpp"), "-o", str(made), *_linked()])
                ctypes.CDLL(str(made))
                made.replace(path)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        log.warning("kernels: OpenVINO's, which are slower; %s: %s", compiler[0], said[0] if said else "failed")
        return None
    return path


def _loads(path: Path) -> bool:
    """Whether what is kept is whole, and can be loaded here."""
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _compiler() -> list[str] | None:
    """The command that compiles, without what is to be compiled; None: there is none. CXX may have options."""
    if asked := shlex.split(os.environ.get("CXX") or ""):
        if shutil.which(asked[0]) is None:
            log.warning("kernels: OpenVINO's, which are slower; CXX is %s, which is not found", asked[0])
            return None
        return asked
    found = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        log.warning("kernels: OpenVINO's, which are slower; no C++ compiler is found (%s)", ", ".join(_COMPILERS))
        return None
    return [found]


def _place(compiler: list[str]) -> Path:
    """Where it is kept: by its source, how it is compiled, and the processor, of which a home may have several."""
    sources = [path.read_text() for path in sorted(SOURCES.glob("*.[ch]pp"))]
    versions = [_run([*compiler, "--version"]), version("openvino"), *platform.libc_ver()]
    told = [*sources, *versions, *_OPTIONS, *_DEFINED, *_LINKED, *compiler, _flags()]
    return files.cache_folder() / "kernels" / f"{hashlib.sha256('|'.join(told).encode()).hexdigest()[:16]}.so"


@cache
def _flags() -> str:
    """What this processor can do."""
    with Path("/proc/cpuinfo").open() as lines:
        return next((line for line in lines if line.startswith("flags")), "")


def _run(command: list[str]) -> str:
    """What a command says. Raises SubprocessError and OSError."""
    plain = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, errors="replace", timeout=_MOST_SECONDS, env=plain
    )
    return done.stdout


def _package() -> Path:
    """Where OpenVINO is, which is not imported for that."""
    found = importlib.util.find_spec("openvino")
    if found is None or found.origin is None:
        raise OSError("openvino is not installed")
    return Path(found.origin).parent


def _openvino() -> list[str]:
    return [*_DEFINED, "-isystem", str(_package() / "include")]


def _linked() -> list[str]:
    """The libraries that the process has already, by the names that they have there."""
    libraries = _package() / "libs"
    names = [sorted(libraries.glob(f"{name}.so.*"))[-1:] for name in ("libopenvino", "libtbb")]
    return [
        f"-L{libraries}",
        f"-Wl,-rpath,{libraries}",
        *(f"-l:{path.name}" for found in names for path in found),
        *_LINKED,
    ]
