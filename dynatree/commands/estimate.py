"""`dynatree estimate`: how long a scale would take, before it is started."""

import argparse
from collections.abc import Callable
from pathlib import Path

from dynatree import files
from dynatree.commands import options
from dynatree.errors import UserError, readable
from dynatree.study import estimate, params

_DESCRIPTION = """\
Add up how long the generation runs of a scale would take: on this machine, on one where an autoregressive step takes
another time, and on many at once (profiles/slurm). Speeds over autoregressive decoding are those that the last run
measured (results/pace.json). Models, text, calibration, tables and figures come on top.

examples:
  dynatree estimate --scale study
  dynatree estimate --scale paper --step-ms 7.5 --machines 1 --machines 32
"""


def register(
    add: Callable[..., argparse.ArgumentParser], find_model: Callable[[str, params.Params], Path]
) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); it needs no model."""
    parser = add(
        "estimate",
        help="how long a scale would take",
        description=_DESCRIPTION,
    )
    parser.add_argument("--scale", help="one of `scales` in params.yaml (default: the one that is set there)")
    parser.add_argument(
        "--pace",
        type=Path,
        default=Path("results/pace.json"),
        metavar="FILE",
        help="speeds of a finished run (default: results/pace.json)",
    )
    parser.add_argument(
        "--step-ms", type=float, metavar="MS", help="how long an autoregressive step takes (default: as in --pace)"
    )
    parser.add_argument(
        "--job-seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="how long a job takes to start: imports, models (default: 5)",
    )
    parser.add_argument(
        "--machines",
        type=options.at_least_one,
        action="append",
        metavar="N",
        help="so many at once (default: 1); may be repeated",
    )
    parser.set_defaults(run=_run)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    known = params.read()
    scale = arguments.scale or known.scale
    if scale not in known.scales:
        raise UserError(f"--scale: no {scale!r}; choose one of {', '.join(known.scales)}")
    # Anew: what another scale has instead, and what it leaves out, is gone by now.
    known = params.read(scale=scale)
    for option in ("step_ms", "job_seconds"):
        value = getattr(arguments, option)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{option.replace('_', '-')}: {value}; give more than 0")
    with readable(f"--pace {arguments.pace}"):
        pace = files.read_json(arguments.pace)
    measured = estimate.measured(pace)
    step = measured.step if arguments.step_ms is None else arguments.step_ms / 1000
    found = estimate.parts(known, measured, step, arguments.job_seconds)
    print(f"scale {scale}, an autoregressive step of {1000 * step:.1f} ms; speedups from {measured.processor}")
    print(estimate.describe(found, arguments.machines or [1]))
