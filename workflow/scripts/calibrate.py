"""Measure what forwards cost on this machine and how often drafted tokens are right on tuning text."""

import argparse
from pathlib import Path

from dynatree.commands import options
from dynatree.costs.calibration import read_rates
from dynatree.data.prompts import choose
from dynatree.data.splits import TUNING, read_tokens
from dynatree.engine.machine import set_threads
from dynatree.errors import reported
from dynatree.measuring import calibrate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.models(parser)
    options.machine(parser)
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="tokens.parquet of each data set")
    parser.add_argument("--start", nargs="+", required=True, help="where prompts begin in each: body or interior")
    parser.add_argument("--prompts", type=int, required=True, help="tuning prompts a data set")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--output-tokens", type=int, required=True, help="of the target's greedy continuations")
    parser.add_argument("--contexts", type=int, nargs="+", required=True, help="committed tokens to time behind")
    parser.add_argument("--repeats", type=int, required=True, help="timed forwards of each size")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--rates", type=Path, help="a folder of another format, how often tokens are right taken from there"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    a = parser.parse_args()
    with reported():
        set_threads(a.threads)
        prompts = [
            prompt
            for path, start in zip(a.tokens, a.start, strict=True)
            for prompt in choose(
                read_tokens(path), path.stem, a.prompts, a.prompt_tokens, a.output_tokens, a.seed, start, TUNING
            )
        ]
        calibration = calibrate.pair(
            options.folders(a),
            [p.ids for p in prompts],
            a.output_tokens,
            a.contexts,
            a.repeats,
            a.dtype,
            a.device,
            read_rates(a.rates) if a.rates else None,
        )
        calibration.write(a.out)


if __name__ == "__main__":
    main()
