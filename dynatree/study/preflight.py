"""All checks of the parameters before any work, at the edge: what only plug-ins can judge is asked of them once.

Imports no torch unless they have to be asked (plugin_checks.py).
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynatree import files
from dynatree.config import QUANTISED
from dynatree.errors import UserError
from dynatree.files import read_json, write_json
from dynatree.study.sections import Params


def check_once(params: Params, stamps: Path) -> Any:
    """`plugin_checks.check`, unless it passed before for the same parameters and library: a stamp in `stamps` has its
    answer. What the machine lacks is asked each time.

    A job graph is made for every stage, and importing torch each time would cost more than most stages.
    """
    _check_formats(params)
    here = files.PACKAGE
    state = [params.model_dump_json()]
    state += [f"{p.relative_to(here)} {p.stat().st_mtime_ns} {p.stat().st_size}" for p in sorted(here.rglob("*.py"))]
    stamp = stamps / hashlib.sha256("\n".join(state).encode()).hexdigest()
    if not stamp.is_file():
        from dynatree.study import plugin_checks

        write_json(stamp, plugin_checks.check(params))
    return read_json(stamp)


def _check_formats(params: Params) -> None:
    """What computes weights of few bits is there, if any run of these parameters asks for them.

    Not asked as parameters are read: who decodes by a method of theirs chooses a format of their own.
    """
    asked = {params.place("dtype"): [params.dtype]}
    asked |= {f"experiments.{title}.dtypes": experiment.dtypes for title, experiment in params.experiments.items()}
    asked["benchmark.dtypes"] = params.benchmark.dtypes
    for key, dtypes in asked.items():
        wanted = [dtype for dtype in dtypes if dtype in QUANTISED]
        if wanted and find_spec("openvino") is None:
            instead = "write float32" if len(dtypes) == 1 else f"leave {', '.join(wanted)} out"
            raise UserError(f"{key}: {wanted[0]} needs OpenVINO, which this machine lacks; {instead}")
