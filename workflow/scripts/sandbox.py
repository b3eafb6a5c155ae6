"""Copy the checkout's files to another folder with the parameters of scale tiny: random models, made-up text."""

import argparse
import os
import shutil
from pathlib import Path

import yaml
from pathspec import GitIgnoreSpec

LEFT = ("/.git", "/results/", "/figures/", "/published/")
DATASETS = ["tiny_articles", "tiny_books"]
TINY = {"scale": "tiny", "pair": "tiny", "datasets": DATASETS, "tuning": DATASETS[:], "threads": 1}
# Of the experiments a few runs each, so that every rule and figure has something to do.
COMPARED = ["autoregressive", "dynatree"]
# They draft by the pair's `features`, so that both of its drafters have something to do.
READING = ["dynatree_threshold", "dynatree"]
ALSO = ["fixed_d5_b2", "optimal", "shared_noise", "traversal"]
SETTINGS = {
    "chains": {"linear": ["K4"]},
    "tree_shape": {"dynatree_threshold": ["D2_B2_tau0.01_N16", "D4_B2_tau0.01_N16", "D4_B2_tau0.1_N16"]},
    "ablation": {"dynatree_threshold": ["D4_B2_tau0.01_N16", "D4_B2_tauNone_N16"]},
}
CONDITIONS = {"prompt_tokens": [12, 24], "batches": [1, 2]}


def tiny(text: str) -> str:
    """params.yaml's text with the tiny selection."""
    values = yaml.safe_load(text)
    values |= {**TINY, "memory": COMPARED}
    for name in READING:
        values["methods"][name]["reads"] = True
    for name, experiment in values["experiments"].items():
        experiment["datasets"] = ["tiny_articles"]
        experiment["methods"] = [method for method in experiment["methods"] if method in COMPARED]
        if name in SETTINGS:
            experiment["settings"] = SETTINGS[name]
        if "also" in experiment:
            few = {method: experiment["also"][method] for method in ALSO if method in experiment["also"]}
            experiment["also"] = few or experiment["also"]
        experiment |= {key: few for key, few in CONDITIONS.items() if key in experiment}
    return yaml.safe_dump(values, sort_keys=False)


def listed(root: Path) -> list[Path]:
    """Files, from `root` on, that neither .gitignore nor LEFT names. Needs no git."""
    left = GitIgnoreSpec.from_lines([*(root / ".gitignore").read_text(encoding="utf-8").splitlines(), *LEFT])
    found: list[Path] = []
    for place, folders, names in os.walk(root):
        here = Path(place).relative_to(root)
        folders[:] = [name for name in folders if not left.match_file(f"{here / name}/")]
        found += [here / name for name in names if not left.match_file(here / name)]
    return [path for path in found if (root / path).is_file()]


def copy(root: Path, out: Path) -> None:
    """Copy the files of the checkout but its results; earlier runs stay."""
    # Listed first: `out` may lie in the checkout.
    for path in listed(root):
        source, destination = root / path, out / path
        if not (destination.is_file() and destination.read_bytes() == source.read_bytes()):
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, destination)
    (out / "params.yaml").write_text(tiny((root / "params.yaml").read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    copy(Path(__file__).resolve().parents[2], arguments.out)


if __name__ == "__main__":
    main()
