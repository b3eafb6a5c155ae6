"""All checks of the parameters before any work, at the edge: what only plug-ins can judge is asked of them once.

Imports no torch unless they have to be asked (plugin_checks.py).
"""

import hashlib
from pathlib import Path
from typing import Any

from dynatree import files
from dynatree.files import read_json, write_json
from dynatree.study.sections import Params


def check_once(params: Params, stamps: Path) -> Any:
    """`plugin_checks.check`, unless it passed before for the same parameters and library: a stamp in `stamps` has its
    answer.

    A job graph is made for every stage, and importing torch each time would cost more than most stages.
    """
    here = files.PACKAGE
    state = [params.model_dump_json()]
    state += [f"{p.relative_to(here)} {p.stat().st_mtime_ns} {p.stat().st_size}" for p in sorted(here.rglob("*.py"))]
    stamp = stamps / hashlib.sha256("\n".join(state).encode()).hexdigest()
    if not stamp.is_file():
        from dynatree.study import plugin_checks

        write_json(stamp, plugin_checks.check(params))
    return read_json(stamp)
