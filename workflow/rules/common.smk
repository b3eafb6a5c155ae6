# Parameters, checked; the runs they ask for; which library files a job uses. The only place for helpers.
import json
import shlex
import sys
from pathlib import Path

from dynatree import grid, params, plugins
from dynatree.errors import UserError
from dynatree.schema import TABLES


configfile: "params.yaml"


# The interpreter that runs Snakemake runs the scripts, on the library of this checkout.
shell.executable("bash")
shell.prefix(
    f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH PYTHONPATH={shlex.quote(str(Path.cwd()))}; "
)

try:
    PARAMS = params.check(config)
    RUNS = grid.expand(PARAMS)
    TIMELINE = grid.timeline(PARAMS)
    params.check_knobs_once(PARAMS, Path(".cache/checked"))
except UserError as error:
    raise WorkflowError(str(error))

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


MODEL = library("model", "cache", "provenance", "text/documents")
WEIGHTS = [*MODEL, *library("weights", "registry", "hub")]
TEXT = library("model", "cache", "text/documents", "text/prompts")


def decoding_library(run):
    """Files that generation with the decoder, policy and drafter of `run` uses."""
    knobs = dict(run.knobs)
    modules = ["measure", "plugins", "trace", "verification/greedy", "text/prompts", f"decoding/{run.decoder}"]
    if "policy" in knobs:
        modules += ["tree", f"policies/{knobs['policy']}", f"drafting/{knobs.get('drafting', 'model')}"]
    else:
        modules += ["tree", "baseline", "decoding/autoregressive"]
    return sorted({*MODEL, *library(*modules)})


def needs_drafter(run):
    """Whether this run loads the drafter model; plain decoding never does."""
    return run.decoder in ("speculative", "assisted")


def source_library(kind):
    """Files that fetching a data set of this kind uses."""
    helpers = {"hub": ["hub"], "wikipedia": ["registry"], "gutenberg": ["registry", "text/cleaning"], "text": ["text/cleaning"]}
    return library("plugins", "text/documents", f"sources/{kind}", *helpers.get(kind, []))


def figure_tables(figure):
    """Tables that a figure reads; it names them itself."""
    return plugins.load("figures", figure).TABLES
