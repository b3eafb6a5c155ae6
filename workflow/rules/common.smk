# Parameters, checked; the runs they ask for; which library files a job uses. The only place for helpers.
import json
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

from snakemake.executors.touch import Executor as Touch
from snakemake.scheduling.job_scheduler import JobScheduler

from dynatree import code_checksums, plugins, rule_checksums, settings
from dynatree.distil.recipe import Recipe
from dynatree.errors import UserError, readable, reported
from dynatree.files import DRAFTER_FILES, FUSION, MODEL_FILES, READING, SUCCESSORS, drafter_of, features_of
from dynatree.measuring import calibration_methods
from dynatree.study import grid, params, preflight, shape
from dynatree.tables.headline import PLOTS
from dynatree.tables.schema import APART, TABLES


configfile: "params.yaml"


# To keep to a limit of jobs a second, of which this graph is far, Snakemake looks at all waiting jobs again each second, once
# for each job that has ended: on the cores that the running job is timed on (a fifth of one after a hundred jobs).
JobScheduler._schedule_reevalutation = lambda scheduler, delay: None

# With `--touch` it waits a tenth of a second before each job, for file systems that count in seconds: of files that are
# touched later none is older where they count in less.
Touch.SLEEPING_TIME = 0

# The interpreter that runs Snakemake runs the scripts, but for a rule's own environment; on the library of this checkout,
# in a process that has its imports and models (worker.py).
shell.executable("bash")
shell.prefix(
    'set -euo pipefail; [[ "${{CONDA_PREFIX:-}}" == */.snakemake/* ]] || '
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
    f"export PYTHONPATH={shlex.quote(str(Path.cwd()))}; "
    'python() {{ command python workflow/scripts/worker.py "$@"; }}; '
)

with reported():
    params.load("params.yaml")  # refuses keys that stand there twice, which `configfile` does not see
    PARAMS = params.check(config)
    RUNS = grid.expand(PARAMS)
    PASSES = grid.passes(PARAMS)
    PROMPTS = grid.prompts(PARAMS)
    NEEDS = preflight.check_once(PARAMS, Path(".cache/checked"))

SIZES = PARAMS.sizes
PAIR = PARAMS.pairs[PARAMS.pair]
TARGET = f"models/{PARAMS.pair}"
DRAFTER = f"models/{drafter_of(PARAMS.pair)}"
# The drafter that reads the target's states, where the pair has one.
FEATURES = f"models/{features_of(PARAMS.pair)}" if PAIR.features else None
BATCHED = {title for title, experiment in PARAMS.experiments.items() if experiment.batches}
RECORDS = ["outputs.jsonl", "timings.json", "audit.jsonl"]
FIGURE_FILES = ["svg", "png", "html", "caption.txt"]


def machine(dtype):
    """The format of the models, where they compute, and by how many threads."""
    return f"--dtype {dtype} --device {PARAMS.device}" + (f" --threads {PARAMS.threads}" if PARAMS.threads else "")


def calibrated(dtype, reads):
    """What was measured of the models in this format, with the drafter that reads or with the other."""
    folder = f"results/calibration/{f'{READING}/' if reads else ''}{dtype}"
    return [f"{folder}/{name}" for name in ("costs.json", "steps.json")]


def calibrated_batches(dtype, reads):
    """The costs of several requests at once."""
    return str(Path(calibrated(dtype, reads)[0]).with_name("batches.json"))


# The main format first, those that only the benchmark has last; and those that are calibrated, by the drafter of the tables.
ORDER = list(dict.fromkeys([PARAMS.dtype, *(run.dtype for run in RUNS.values()), *PARAMS.benchmarked]))
WEIGHED = [run for run in RUNS.values() if NEEDS[run.folder]["calibration"]]
# The drafter of the tables of costs, and of those that are reported.
READS = any(run.reads for run in WEIGHED)
CALIBRATED = {PARAMS.dtype, *(run.dtype for run in WEIGHED if run.reads == READS)}
FORMATS = [dtype for dtype in ORDER if dtype in CALIBRATED]

# The priority of what takes seconds and has others wait for it.
FIRST = 1_000_000
# Requests of no batch: what times batches comes before their runs.
MANY = 500


def turn(dtype, requests=1):
    """A job's priority: after one of the same models it need not load them, nor compile their graphs, again.

    Graphs for several requests are kept for one number of them: batches are decoded from the largest, by which
    those that are timed for calibration end.
    """
    return 1000 * (len(ORDER) - ORDER.index(dtype)) - (MANY - min(requests, MANY) if requests > 1 else 0)


MACHINE = machine(PARAMS.dtype)
CALIBRATION = calibrated(PARAMS.dtype, READS)
BATCHES = calibrated_batches(PARAMS.dtype, READS)


wildcard_constraints:
    dataset="|".join(PARAMS.datasets),
    figure="|".join([*PARAMS.figures, *APART]),
    top="|".join(sorted({run.top for run in RUNS.values()})),
    method="[^/]+",
    settings="[^/]+",
    place="|".join(sorted({run.place for run in RUNS.values()})),
    length="[^/]+",
    group="[^/]+",
    dtype="[^/]+",
    reading=f"({READING}/)?",


def library(script, *plugged):
    """The file that stands for a script, its library files and those of the plug-ins `plugged` ("policies.chain", ...)."""
    return f"results/library/{'-'.join([Path(script).stem, *plugged])}.sha256"


CODE = code_checksums.Checkout(Path.cwd(), keeps=True)
RULES = Path("workflow/rules")
# Of those that make something of the study, each a file.
RULE_SUMS = {rule: f"results/library/rules/{rule}.sha256" for rule in rule_checksums.counted(RULES)}


@cache
def library_files(group):
    """The script and the files of the library that it imports, and with it plug-ins: `group` names them as `library`."""
    script, *plugged = group.split("-")
    return CODE.used(f"workflow/scripts/{script}.py", [f"dynatree.{name}" for name in plugged])


def source_files(dataset):
    """The files with which a data set is fetched, those of its kind alone."""
    return CODE.used("workflow/scripts/download_data.py", [f"dynatree.data.sources.{PARAMS.sources[dataset].kind}"])


def changed(files, listings):
    """`files`, as inputs that make nothing stale where only words have changed: `listings` are their checksums, by the
    file that has what they were."""
    same = all(Path(file).is_file() and Path(file).read_text(encoding="utf-8") == now for file, now in listings.items())
    return ancient(files) if same else files


def changed_code(files, taken):
    """`changed` of files of code."""
    return changed(files, {taken: CODE.listing(files)})


def changed_rules():
    """The files that rules are written in, as `changed` has them of all."""
    files = sorted({str(RULES / rule_checksums.COMMON), *map(str, rule_checksums.counted(RULES).values())})
    return changed(files, {taken: rule_checksums.listing(rule, RULES) for rule, taken in RULE_SUMS.items()})


def decoding_library(script, method):
    """Files that a script uses with decoder, policy and drafter of `method`: a run, or an entry of params.yaml."""
    knobs = {**({"drafting": "model"} if method.decoder == "speculative" else {}), **dict(method.knobs)}
    plugged = [f"{folder}.{knobs[knob]}" for knob, folder in settings.PLUGGED.items() if knob in knobs]
    return library(script, f"decoding.{method.decoder}", *plugged)


def decoding_of(methods):
    """Files that stand for the library files with which these methods decode."""
    return sorted({decoding_library("workflow/scripts/generate.py", method) for method in methods.values()})


def described(methods):
    """The methods with their knobs, as the script takes them, and whether they draft by the drafter that reads."""
    told = {name: method.model_dump() | {"reads": grid.reads(PARAMS, method)} for name, method in methods.items()}
    return json.dumps(told)


def calibration(run):
    """The calibration, if the method of this run makes use of one; that of batches, too, where batches are compared."""
    batches = [calibrated_batches(run.dtype, run.reads)] if run.top in BATCHED else []
    return [*calibrated(run.dtype, run.reads), *batches] if NEEDS[run.folder]["calibration"] else []


def figure_tables(figure):
    """Tables that a figure reads; it names them itself."""
    return plugins.load("figures", figure).TABLES


def run_of(wildcards):
    return asked(RUNS, wildcards.top, wildcards)


def pass_of(wildcards, top):
    return asked(PASSES, top, wildcards)


def asked(runs, top, wildcards):
    """The run of a results folder; UserError where params.yaml asks for none."""
    folder = f"{top}/{wildcards.method}/{wildcards.settings}/{wildcards.place}"
    if folder not in runs:
        here = [run for run in runs.values() if run.top == top]
        near = [run.folder for run in here if run.method == wildcards.method] or sorted({run.method for run in here})
        raise UserError(f"results/{folder}: no run of params.yaml; there are {', '.join(near)}")
    return runs[folder]


def prompts_file(run):
    return f"data/prompts/{PARAMS.pair}/{run.length}/{run.dataset}.parquet"


def tokens_file(run):
    return f"data/tokens/{PARAMS.pair}/{run.dataset}.parquet"


def part(model):
    """Where the checkout has the trained part of a drafter."""
    return Path("drafters", Path(model).name.removesuffix(drafter_of("")))


def shipped(model):
    """Its files; none, so that it is trained: there is none, or distil.retrain."""
    return [] if PARAMS.distil.retrain else sorted(map(str, part(model).glob("*.*")))


def training_text(model):
    """The tokens that a drafter is trained on: of a shipped part those that it was, for it saw none that is evaluated."""
    record = part(model) / "record.json"
    with reported(), readable(str(record)):
        known = json.loads(record.read_text(encoding="utf-8"))["data"] if str(record) in shipped(model) else {}
    chosen = [dataset for dataset in PARAMS.datasets if dataset in known] or PARAMS.tuned_on
    return [f"data/tokens/{PARAMS.pair}/{dataset}.parquet" for dataset in chosen]


def part_option(model):
    """--part, where one is shipped."""
    return f"--part {part(model)}" if shipped(model) else ""


def drafter_files(source):
    """The files of a drafter from `source`."""
    if source["kind"] == "distil":
        tabled = Recipe(**source).tabled
    else:
        tabled = source["kind"] == "local" and (Path(source["path"]) / SUCCESSORS).is_file()
    return [*DRAFTER_FILES, SUCCESSORS] if tabled else [*DRAFTER_FILES]


def models(run):
    """Manifests stand for the weights: they hold the checksums, and are small enough to be compared by content.

    Autoregressive decoding never loads the drafter.
    """
    target, drafter = pair_of(run.reads)
    return [target] if NEEDS[run.folder]["drafter"] == "unused" else [target, drafter]


def pair_of(reads):
    """The manifests of the target and of its drafter: the one that reads, or the other."""
    return [f"{folder}/manifest.json" for folder in (TARGET, FEATURES if reads else DRAFTER)]


def model_options(manifests, calibration=()):
    """--target and, where there are such, --drafter and --calibration: the folders of these files."""
    parts = [*zip(("target", "drafter"), manifests), *zip(("calibration",), calibration)]
    return " ".join(f"--{role} {Path(path).parent}" for role, path in parts)


def drafters_of(methods):
    """Whether they read the target's states, of the drafters whose costs a policy of these methods may weigh."""
    return sorted({grid.reads(PARAMS, method) for method in methods.values() if "policy" in method.knobs})


def costs_of(methods, dtype):
    """What was measured with these drafters in this format."""
    return [path for reads in drafters_of(methods) for path in calibrated(dtype, reads)]


def costs_beside_llama():
    """Costs of our formats, beside llama.cpp's own. UserError where ours compute elsewhere than it does."""
    if PARAMS.device != "cpu":
        here = f"{PARAMS.place('device')}: {PARAMS.device}"
        raise UserError(f"{here}; llama.cpp computes on the CPU here: write cpu, to compare like with like")
    return [calibrated(dtype, READS)[0] for dtype in sorted(FORMATS)]


def features_of_pair(methods):
    """The drafter that reads, if one of these methods drafts by it."""
    return pair_of(True)[1:] if True in drafters_of(methods) else []


def options_of(methods, models, features, dtype):
    """Models of these methods, and their calibrations in this format."""
    tokens = calibrated(dtype, False) if False in drafters_of(methods) else []
    reading = [("features", FEATURES), ("features-calibration", Path(calibrated(dtype, True)[0]).parent)]
    return " ".join([model_options(models, tokens), *(f"--{name} {path}" for name, path in reading if features)])


# Snakemake compares a job's params with those it was last run with, but only such as are of Python's own types and not
# made of its inputs; what a job is asked for is therefore told in strings.


def method_options(run):
    """The method of a run or pass, how many tokens it decodes, and the machine."""
    knobs = shlex.quote(json.dumps(dict(run.knobs)))
    return f"--decoder {run.decoder} --knobs {knobs} --output-tokens {run.output_tokens} {machine(run.dtype)}"


def size_options(run):
    """How many prompts of a run, how many at once, and how often."""
    return f"--count {run.prompts} --batch {run.batch} --repeats {run.repeats}"


@cache
def pending():
    """Records of runs that a job would make: they are not there, or of other parameters, text, models or code.

    Snakemake is asked, which alone knows by what a file was made. Takes seconds.
    """
    given = [f"{key}={json.dumps(value)}" for key, value in workflow.config_settings.overwrite_config.items()]
    files = [f"results/{folder}/{file}" for folder in RUNS for file in RECORDS]
    command = ["-m", "snakemake", "--summary", *(["--config", *given] if given else []), "--", *files]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"snakemake --summary: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {path for path, *_, plan in rows if plan == "update pending"}


def complete(folder):
    """Whether all records of a run are there, as they are asked for now."""
    return not any(f"results/{folder}/{file}" in pending() for file in RECORDS)
