# Parameters, checked; the runs they ask for; which library files a job uses. The only place for helpers.
import json
import shlex
import sys
from pathlib import Path

from dynatree import grid, params, plugins
from dynatree.errors import reported
from dynatree.schema import TABLES


configfile: "params.yaml"


# The interpreter that runs Snakemake runs the scripts, on the library of this checkout.
shell.executable("bash")
shell.prefix(
    f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH PYTHONPATH={shlex.quote(str(Path.cwd()))}; "
)

with reported():
    PARAMS = params.check(config)
    RUNS = grid.expand(PARAMS)
    TIMELINE = grid.timeline(PARAMS)
    params.check_knobs_once(PARAMS, Path(".cache/checked"))

SIZES = PARAMS.sizes
PAIR = PARAMS.pairs[PARAMS.pair]
TARGET, DRAFTER = f"models/{PARAMS.pair}", f"models/{PARAMS.pair}-drafter"
MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "manifest.json",
]
FIGURE_FILES = ["svg", "png", "html", "caption.txt"]
MACHINE = f"--dtype {PARAMS.dtype} --device {PARAMS.device}" + (
    f" --threads {PARAMS.threads}" if PARAMS.threads else ""
)


wildcard_constraints:
    dataset="|".join(PARAMS.datasets),
    figure="|".join(PARAMS.figures),
    top="runs|sweep",


def library(*modules):
    """Files of the library that a rule uses, besides the errors and files that all do."""
    return [f"dynatree/{name}.py" for name in ("errors", "files", *modules)]


MODEL = library("model", "cache", "tokenizer", "provenance")
WEIGHTS = [*MODEL, *library("weights", "registry", "hub", "distil/recipe")]
TEXT = library("text/documents", "text/splits", "text/prompts")
DISTIL = library(*(f"distil/{name}" for name in ("labels", "make", "part", "recipe", "student", "text", "training")))


def decoding_library(run):
    """Files that generation with the decoder, policy and drafter of `run` uses."""
    knobs = dict(run.knobs)
    modules = ["measure", "plugins", "trace", "tree", "verification/greedy", "decoding/__init__"]
    modules.append(f"decoding/{run.decoder}")
    if "policy" in knobs:
        modules += [f"policies/{knobs['policy']}", f"drafting/{knobs.get('drafting', 'model')}"]
    else:
        modules.append("baseline")
    return sorted({*MODEL, *TEXT, *library(*modules)})


def needs_drafter(run):
    """Whether this run loads the drafter model; plain decoding never does."""
    return run.decoder in ("speculative", "assisted")


def source_library(kind):
    """Files that fetching a data set of this kind uses."""
    helpers = {
        "hub": ["hub"],
        "wikipedia": ["registry"],
        "gutenberg": ["registry", "text/cleaning"],
        "text": ["text/cleaning"],
    }
    return library("plugins", "text/documents", f"sources/{kind}", *helpers.get(kind, []))


def figure_tables(figure):
    """Tables that a figure reads; it names them itself."""
    return plugins.load("figures", figure).TABLES


def run_of(wildcards):
    return RUNS[f"{wildcards.top}/{wildcards.method}/{wildcards.settings}/{wildcards.dataset}"]


def pass_of(wildcards):
    return TIMELINE[f"timeline/{wildcards.method}/{wildcards.settings}/{wildcards.dataset}"]


def models(run):
    """Manifests stand for the weights: they hold the checksums, and are small enough to be compared by content."""
    return [f"{folder}/manifest.json" for folder in ([TARGET, DRAFTER] if needs_drafter(run) else [TARGET])]


def model_options(manifests):
    """--target and, where there is one, --drafter: the folders of these manifests."""
    return " ".join(f"--{role} {Path(path).parent}" for role, path in zip(("target", "drafter"), manifests))
