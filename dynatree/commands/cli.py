"""The library by hand: decode, chat, draw a tree, measure costs, make and judge drafters, plan runs, explain tables."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from dynatree import files
from dynatree.commands import calibrate, chat, demo, distil, drafter_report, estimate, generate, replay, tree
from dynatree.errors import UserError, reported
from dynatree.study import params
from dynatree.tables import schema
from dynatree.version import __version__

COMMANDS = (demo, generate, chat, tree, replay, calibrate, distil, drafter_report, estimate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `dynatree`."""
    parser = argparse.ArgumentParser(prog="dynatree", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="explain the result tables and the parameters")
    what = report.add_mutually_exclusive_group(required=True)
    what.add_argument("--schema", action="store_true", help="print the columns of results/*.parquet")
    what.add_argument("--parameters", action="store_true", help="print the keys of params.yaml")
    what.add_argument("--params-schema", action="store_true", help="print them as a JSON schema, for editors")
    report.set_defaults(run=_report)
    add = partial(commands.add_parser, formatter_class=argparse.RawDescriptionHelpFormatter)
    others = [module.register(add, _folder) for module in COMMANDS]
    for each in (parser, report, *others):
        each.error = _refuse  # argparse would print the usage above the error
    with reported():
        parsed = parser.parse_args(arguments)
        parsed.run(parsed)


def _report(arguments: argparse.Namespace) -> None:
    if arguments.schema:
        print(schema.describe())
    else:
        from dynatree.study import json_schema, parameter_docs  # they import torch

        try:
            print((json_schema if arguments.params_schema else parameter_docs).describe())
        except ImportError as error:  # of a source's library
            raise UserError(f"report: {error}; pip install '.[workflow]' in the checkout") from error


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _folder(name: str, known: params.Params) -> Path:
    """The model folder that `name` means: a path, or a model of params.yaml that the workflow has built."""
    if Path(name).is_dir():
        return Path(name)
    names = [model for pair in known.pairs for model in (pair, files.drafter_of(pair))]
    names += [files.features_of(name) for name, pair in known.pairs.items() if pair.features]
    if name not in names:
        raise UserError(f"model: {name!r} is neither a folder nor a model of params.yaml ({', '.join(names)})")
    homes = [Path(os.environ["DYNATREE_MODELS"])] if "DYNATREE_MODELS" in os.environ else []
    homes += [Path("models"), Path(__file__).resolve().parents[2] / "models"]
    found = next((home / name for home in homes if (home / name / files.MANIFEST).is_file()), None)
    if found is None:
        raise UserError(
            f"model {name!r} is not built yet: run `snakemake --cores 1 models/{name}/manifest.json` (or `make all`) "
            "in a checkout of the project, and call dynatree there or set DYNATREE_MODELS to its models folder"
        )
    return found


if __name__ == "__main__":
    main()
