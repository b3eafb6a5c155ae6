"""Copy the checkout's files to another folder with the parameters of a larger study: pairs, data sets, prompts.

What is added is what is there under further names, so that the job graph of a study can be looked at before its models
and texts are chosen: forecast.py says what it takes.
"""

import argparse
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import sandbox
import yaml

from dynatree.commands import options
from dynatree.errors import UserError, reported

# Settings are of this method of this experiment: budgets of nodes, by depth.
EXPERIMENT, METHOD = "tree_shape", "dynatree_threshold"
DEPTHS, BUDGETS = range(8, 0, -1), range(101, 1001)


class Written(yaml.SafeDumper):
    """YAML in which what stands in several places is written in each."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def named(values: dict[str, Any], names: list[str], number: int) -> list[str]:
    """So many names of `values`: the given ones, and further ones, with a number, of copies of theirs in turn."""
    found = names[:number]
    for place in range(len(found), number):
        name = names[place % len(names)]
        found.append(f"{name}_{place // len(names) + 1}")
        values[found[-1]] = deepcopy(values[name])
    return found


def enlarge(text: str, scale: str, pairs: int, datasets: int, prompts: int, settings: int) -> str:
    """params.yaml's text with that scale alone: as many prompts everywhere, and every experiment on all data sets.

    Raises UserError for a scale that is not there, and for more settings than there are.
    """
    values = yaml.safe_load(text)
    if scale not in values["scales"]:
        raise UserError(f"--scale: no {scale!r}; choose one of {', '.join(values['scales'])}")
    if settings > (most := len(DEPTHS) * len(BUDGETS)):
        raise UserError(f"--settings: {settings}; there are {most}")
    sizes = values["scales"][scale]
    values |= {"scale": scale, "scales": {scale: sizes}, "limits": {"runs": 10**6}}
    of = named(values["pairs"], [values["pair"]], pairs)
    values["pairs"] = {name: values["pairs"][name] for name in of}
    values["datasets"] = named(values["sources"], values["datasets"], datasets)
    for experiment in values["experiments"].values():
        experiment["datasets"] = values["datasets"]
    for size in (sizes, *sizes["experiments"].values()):
        size["prompts"] = prompts
    if settings:
        every = (f"D{depth}_B3_tau0.03_N{budget}" for depth in DEPTHS for budget in BUDGETS)
        values["experiments"][EXPERIMENT]["settings"] = {METHOD: [*islice(every, settings)]}
    return yaml.dump(values, Dumper=Written, sort_keys=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--scale", default="study", help="one of `scales` in params.yaml (default: study)")
    parser.add_argument("--pairs", type=options.at_least_one, default=12, metavar="N", help="default: 12")
    parser.add_argument("--datasets", type=options.at_least_one, default=6, metavar="N", help="default: 6")
    parser.add_argument("--prompts", type=options.at_least_one, default=200, metavar="N", help="default: 200")
    parser.add_argument(
        "--settings", type=int, default=0, metavar="N", help=f"of {METHOD} (default: those that it has)"
    )
    a = parser.parse_args()
    with reported():
        root = Path(__file__).resolve().parents[2]
        text = (root / "params.yaml").read_text(encoding="utf-8")
        written = enlarge(text, a.scale, a.pairs, a.datasets, a.prompts, a.settings)
        sandbox.copy(root, a.out)
        (a.out / "params.yaml").write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
