"""Command-line options that several entry points share. Imports nothing heavy, so that --help comes at once."""

import argparse
from pathlib import Path

from dynatree.config import MOST_THREADS


def machine(parser: argparse.ArgumentParser) -> None:
    """--dtype, --device, --threads: what a model computes in, on what, with how many threads (None: see below)."""
    formats = "float32 (default), float64, bfloat16, float16; int8 or int4: weights of so many bits, on CPUs"
    parser.add_argument("--dtype", default="float32", help=formats)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    threads(parser)


def threads(parser: argparse.ArgumentParser) -> None:
    """--threads alone; None stands for the physical cores (provenance.set_threads)."""
    parser.add_argument("--threads", type=_thread_count, metavar="N", help="default: the physical cores")


def models(parser: argparse.ArgumentParser) -> None:
    """--target and --drafter: model folders."""
    parser.add_argument("--target", type=Path, required=True, help="model folder")
    parser.add_argument("--drafter", type=Path, help="model folder, where there is a drafter")


def method(parser: argparse.ArgumentParser) -> None:
    """What decodes which prompts how far, as the workflow names it: model folders, a decoder and its knobs."""
    models(parser)
    parser.add_argument("--calibration", type=Path, help="folder, for the methods that make use of one")
    parser.add_argument("--decoder", required=True, help="a file of dynatree/decoding")
    parser.add_argument("--knobs", default="{}", help="JSON object: the decoder's knobs, as in params.yaml")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.parquet")
    parser.add_argument("--output-tokens", type=int, required=True)


def folders(arguments: argparse.Namespace) -> dict[str, Path]:
    """The model folders given, by role: `target` and, if there is one, `drafter`."""
    given = {"target": arguments.target, "drafter": arguments.drafter}
    return {role: folder for role, folder in given.items() if folder is not None}


def at_least_one(text: str) -> int:
    """An argument's type: a whole number from 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; give at least 1")
    return int(text)


def _thread_count(text: str) -> int:
    count = at_least_one(text)
    if count > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text}; give at most {MOST_THREADS}")
    return count
