"""Write dvc.yaml: DVC's view of the job graph that the rules and params.yaml describe.

Stages take lists and knobs by template from params.yaml, so that another value needs no new file; another method,
experiment, figure, pair or library file does.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import views
import yaml

from dynatree import settings
from dynatree.code_checksums import Checkout
from dynatree.errors import UserError, reported
from dynatree.files import READING, replacing
from dynatree.study import grid, params, preflight, sections, shape

# Its items are made together, each a small file.
TOGETHER = "library"
# Stops `dvc repro` where the other stages are not those of the parameters.
CHECK = {
    "cmd": "python workflow/scripts/stages.py --quick",
    "deps": ["params.yaml", "workflow/rules", "workflow/scripts/stages.py", "workflow/scripts/views.py", "dynatree"],
}
# By a process that has imported it: a stage each would else spend seconds on that.
SNAKEMAKE = "python workflow/scripts/worker.py snakemake"
HEADER = "# Made by `make dvc.yaml` from the rules and params.yaml, and not edited by hand.\n"
MACHINE = ("dtype", "device", "threads")


def of_scale(*keys: str) -> tuple[str, ...]:
    """These keys of the active scale."""
    return tuple(f"scales.${{scale}}.{key}" for key in keys)


# What a rule reads of params.yaml, a run's own keys apart; ITEM: the data set of the stage's item.
ITEM = "${item.dataset}"
READ: dict[str, tuple[str, ...]] = {
    "library": (),
    "library_of_source": ("sources.${item.dataset}.kind",),
    "library_of_rules": (),
    "download_data": (f"sources.{ITEM}",),
    "download_model": ("seed", "pairs.${pair}.target"),
    "download_drafter": ("seed", "pairs.${pair}.drafter"),
    "distil": ("seed", "device", "distil", "pairs.${pair}.drafter"),
    "distil_features": ("seed", "device", "distil", "pairs.${pair}.features"),
    "tokenise": ("seed", f"sources.{ITEM}.evaluation_share"),
    "choose_prompts": (
        *("seed", f"sources.{ITEM}.start"),
        *of_scale("prompts", "prompt_tokens", "output_tokens", "timeline_tokens", "experiments"),
    ),
    "drafter_report": (*MACHINE, "datasets", *of_scale("prompt_tokens", "drafter_report_tokens")),
    "calibrate": (*MACHINE, "seed", *of_scale("prompt_tokens", "calibration")),
    "calibrate_batches": (*MACHINE, *of_scale("calibration.contexts", "calibration.repeats")),
    "perplexity": (*MACHINE, *of_scale("perplexity_tokens", "perplexity_window", "perplexity_stride")),
    "generate": MACHINE,
    "timeline": (*MACHINE, *of_scale("timeline_tokens")),
    "memory": (*MACHINE, *of_scale("output_tokens")),
    "aggregate": ("scale", "datasets", "methods", "experiments", *of_scale("experiments"), "timeline", "memory"),
    "draw": (),
    "draw_replay": (),
}
# Folders of a run's conditions by the item of the stage's matrix.
CONDITIONS = {"prompt_tokens": "P${item.prompt_tokens}", "batch": "b${item.batch}", "format": "${item.format}"}
# What git keeps, so that every commit has it.
COMMITTED = re.compile(r"figures/.+\.(svg|png|caption\.txt)|results/(pace\.json|plots/.+)")


@dataclass
class Job:
    """What Snakemake plans: a rule, its wildcards, files in and out."""

    rule: str
    wildcards: dict[str, str]
    inputs: list[str]
    outputs: list[str]


@dataclass
class Stage:
    """Jobs that differ in the items of `matrix` alone. `replaced`: parts of paths by the template that gives them."""

    rule: str
    matrix: dict[str, Any] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    replaced: list[tuple[str, str]] = field(default_factory=list)
    prefix: str = ""  # of the outputs' paths, before any item
    jobs: list[Job] = field(default_factory=list)


def plan(text: str) -> list[Job]:
    """The jobs in the output of a dry run."""
    jobs = []
    blocks = re.split(r"^(?:local)?rule (\w+):$", text, flags=re.M)
    for rule, block in zip(blocks[1::2], blocks[2::2], strict=True):
        found = {key: re.search(rf"^    {key}: (.*)$", block, re.M) for key in ("input", "output", "wildcards")}
        lists = {key: match[1].split(", ") if match else [] for key, match in found.items()}
        if lists["output"]:
            wildcards = dict(part.split("=", 1) for part in lists["wildcards"])
            jobs.append(Job(rule, wildcards, lists["input"], lists["output"]))
    return jobs


def places(known: sections.Params, run: grid.Run) -> dict[str, str]:
    """Where params.yaml has the decoder and each knob of a run: at its own key, or that of the method it is like."""
    found = dict.fromkeys(["decoder", *dict(run.knobs)], run.key)
    experiment = known.experiments.get(run.top)
    variant = experiment.also.get(run.method) if experiment else None
    if variant and variant.like:
        found |= {knob: f"methods.{variant.like}" for knob in found if knob not in variant.own}
    return {knob: f"{key}.{knob}" for knob, key in found.items()}


def templates(places: dict[str, str], knobs: dict[str, Any]) -> str:
    """Knobs as a path has them, each taken from params.yaml but for what YAML and a path write differently."""
    own = {k: v if v is None or isinstance(v, bool) else f"${{{places[k]}}}" for k, v in knobs.items()}
    return settings.write(own)


def lengths(known: sections.Params, title: str, tokens: int) -> tuple[str, str]:
    """Key in params.yaml of the list that has this length of prompts, and what a stage of it is called besides."""
    here = known.sizes.experiments.get(title)
    if here and tokens in here.prompt_tokens:
        return f"scales.{known.scale}.experiments.{title}.prompt_tokens", "_more"
    return f"experiments.{title}.prompt_tokens", ""


def run_stage(known: sections.Params, run: grid.Run, rule: str) -> tuple[str, Stage]:
    """Name and stage, without jobs, of a run: one for each method of the headline, an experiment or a kind of pass."""
    knobs, title = dict(run.knobs), run.top
    stands = places(known, run)
    stage = Stage(rule, reads=[*READ[rule]])
    if title not in known.experiments:
        name, written = f"{'generate' if title == 'runs' else title}_{run.method}", templates(stands, knobs)
        stage.reads.append(run.key)
        if title == "runs":
            stage.matrix["dataset"] = "${datasets}"
            stage.reads += of_scale("prompts", "output_tokens", "repeats")
    else:
        experiment, key = known.experiments[title], f"experiments.{title}"
        name, written = f"{title}_{run.method}", templates(stands, knobs)
        stage.matrix["dataset"] = f"${{{key}.datasets}}"
        size = f"experiments.{title if title in known.sizes.experiments else 'default'}"
        stage.reads += of_scale(f"{size}.prompts", f"{size}.output_tokens")
        if run.method in experiment.settings:
            listed = run.key.rpartition(f".{run.settings}")[0]  # of the experiment, or of its size at this scale
            stage.matrix["settings"], written = f"${{{listed}}}", "${item.settings}"
            name += "_more" if listed.startswith("scales.") else ""
            stage.reads += [f"methods.{run.method}.{knob}" for knob in knobs if knob in (*settings.PLUGGED, "decoder")]
        else:
            inherited = [place for place in stands.values() if not place.startswith(run.key)]
            stage.reads += [run.key, *inherited]
        if run.prompt_tokens is not None:
            listed, more = lengths(known, title, run.prompt_tokens)
            stage.matrix["prompt_tokens"] = f"${{{listed}}}"
            name += more
        if experiment.batches:
            stage.matrix["batch"] = f"${{{key}.batches}}"
        if experiment.dtypes:
            # On a GPU some are left out, and the others stand nowhere by themselves.
            stage.matrix["format"] = f"${{{key}.dtypes}}" if known.device == "cpu" else [*experiment.dtypes]
            stage.reads.remove("dtype")
        stage.reads += [
            f"{key}.{name}" for name in sections.KindOfText.model_fields if name in experiment.model_fields_set
        ]
    dataset = ITEM if stage.matrix else "${datasets[0]}"
    kinds = [kind for kind in CONDITIONS if kind in stage.matrix]
    dtype = "${item.format}" if "format" in kinds else "${dtype}"
    conditions = [CONDITIONS[kind] for kind in kinds]
    stage.prefix = f"results/{title}/{run.method}" + ("" if "settings" in stage.matrix else f"/{written}")
    place = "/".join([*conditions, dataset])
    length = "P${item.prompt_tokens}" if run.prompt_tokens else run.length
    stage.replaced = [
        (f"results/{run.folder}/", f"results/{title}/{run.method}/{written}/{place}/"),
        (f"data/prompts/{known.pair}/{run.length}/{run.dataset}.", f"data/prompts/${{pair}}/{length}/{dataset}."),
        (f"data/tokens/{known.pair}/{run.dataset}.", f"data/tokens/${{pair}}/{dataset}."),
        *((f"results/calibration/{of}{run.dtype}/", f"results/calibration/{of}{dtype}/") for of in ("", f"{READING}/")),
    ]
    return name, stage


def other_stage(known: sections.Params, job: Job) -> tuple[str, Stage]:
    """Name and stage, without jobs, of a job that is no run."""
    stage, name = Stage(job.rule, reads=[*READ[job.rule]]), job.rule
    tuned = "tuning" if known.tuning else "datasets"
    if job.rule in ("calibrate", "distil", "distil_features"):
        stage.reads.append(tuned)
    if job.rule == "calibrate":
        stage.reads += [f"sources.${{{tuned}[{place}]}}.start" for place in range(len(known.tuned_on))]
    if job.wildcards.get("reading"):
        name += f"_{READING}"
    dataset, wanted = job.wildcards.get("dataset"), job.wildcards.get("length", "default")
    dtype, listed_in = job.wildcards.get("dtype", known.dtype), "datasets"
    if dtype != known.dtype:
        # Of an experiment's formats; the usual one is taken from its own key.
        name += f"_{dtype}"
        stage.reads.remove("dtype")
        if dataset:
            of = [t for t, e in known.experiments.items() if dtype in e.dtypes and dataset in e.datasets]
            title = _only(of, f"have {dtype} of {dataset}")
            name, listed_in = f"{name}_{title}", f"experiments.{title}.datasets"
    stage.replaced = [
        (f"results/{top}/{known.dtype}/", f"results/{top}/${{dtype}}/")
        for top in ("calibration", f"calibration/{READING}", "perplexity")
    ]
    if job.rule == "choose_prompts":
        # As many as the largest run on a data set asks for.
        stage.reads += [f"experiments.{title}.datasets" for title in known.experiments]
        stage.reads += of_scale("leaves_out") if "leaves_out" in known.sizes.model_fields_set else ()
    if job.rule == "calibrate_batches":
        stage.reads += [f"experiments.{title}.batches" for title, e in known.experiments.items() if e.batches]
    if job.rule in ("distil", "distil_features", "calibrate", "drafter_report", "aggregate"):
        key = tuned if job.rule == "calibrate" else "datasets"
        listed = known.tuned_on if job.rule == "calibrate" else known.datasets
        stage.replaced += [(f"/{name}.", f"/${{{key}[{place}]}}.") for place, name in enumerate(listed)]
    if "figure" in job.wildcards:
        name = f"draw_{job.wildcards['figure']}"
    if dataset:
        stage.matrix["dataset"] = f"${{{listed_in}}}"
        stage.replaced.append((f"/{dataset}.", f"/{ITEM}."))
    if wanted != "default":
        titles = [
            title
            for title, experiment in known.experiments.items()
            if dataset in experiment.datasets
            and wanted in map(grid.length, [*experiment.prompt_tokens, *known.sizes.of(title).prompt_tokens])
        ]
        title = _only(titles, f"have prompts {wanted} of {dataset}")
        listed, more = lengths(known, title, int(wanted.removeprefix("P")))
        name = f"choose_prompts_{title}{more}"
        stage.matrix = {"prompt_tokens": f"${{{listed}}}", "dataset": f"${{experiments.{title}.datasets}}"}
        stage.replaced.append((f"/{wanted}/", "/P${item.prompt_tokens}/"))
    return name, stage


def _only(titles: list[str], what: str) -> str:
    """The experiment that a file is for. Raises UserError for several: a stage is of one."""
    if len(titles) > 1:
        raise UserError(f"experiments {', '.join(titles)}: both {what}, one file")
    return titles[0]


def collect(known: sections.Params, jobs: Iterable[Job]) -> dict[str, Stage]:
    """All stages by name, runs in the order of params.yaml."""
    runs = {f"results/{folder}": run for folder, run in {**grid.expand(known), **grid.passes(known)}.items()}
    place = {folder: number for number, folder in enumerate(runs)}
    stages: dict[str, Stage] = {}
    # A plan's order is not always the same.
    for job in sorted(jobs, key=lambda j: (place.get(str(Path(j.outputs[0]).parent), 0), j.outputs)):
        run = runs.get(str(Path(job.outputs[0]).parent))
        name, stage = run_stage(known, run, job.rule) if run else other_stage(known, job)
        earlier = stages[name].jobs if name in stages else []
        stages[name] = replace(stage, jobs=[*earlier, template(job, known, stage)])
    return stages


def template(job: Job, known: sections.Params, stage: Stage) -> Job:
    """The job with templates in its paths."""
    pair = [(f"models/{known.pair}", "models/${pair}"), (f"/{known.pair}/", "/${pair}/")]

    def write(path: str) -> str:
        if path.startswith(("dynatree/", "workflow/")):
            return path
        for concrete, written in [*stage.replaced, *pair]:
            path = path.replace(concrete, written)
        return path

    return Job(job.rule, job.wildcards, [*map(write, job.inputs)], [*map(write, job.outputs)])


def at_its_scale(known: sections.Params, written: Any) -> Any:
    """What is written of a stage, with keys that the active scale has instead in place of the usual ones."""
    given = {key for key, value in known.sizes.instead if value is not None}
    if isinstance(written, dict):
        return {at_its_scale(known, key): at_its_scale(known, value) for key, value in written.items()}
    if isinstance(written, list):
        return [at_its_scale(known, value) for value in written]
    if not isinstance(written, str):
        return written
    place = f"scales.{known.scale}.instead"
    for key in given:
        written = f"{place}.{key}" if written == key else re.sub(rf"\$\{{({key}\b)", rf"${{{place}.\1", written)
    if "datasets" in given:
        written = re.sub(r"\$\{tuning\[(\d+)\]\}", lambda match: known.tuning[int(match[1])], written)
    if "datasets" in given and (listed := re.fullmatch(r"\$\{experiments\.([^.]+)\.datasets\}", written)):
        # Under their own names they stand nowhere.
        return list(known.experiments[listed[1]].datasets)
    return written


def describe(stage: Stage, rules: dict[str, str], prefixes: Iterable[str]) -> dict[str, Any]:
    """The stage as dvc.yaml has it. Raises UserError if its jobs do not give one template."""
    outputs = stage.jobs[0].outputs
    if stage.rule == TOGETHER:
        outputs = targets = [path for job in stage.jobs for path in job.outputs]
    elif any(job.outputs != outputs for job in stage.jobs):
        raise UserError(f"stage of {stage.rule}: its jobs differ in more than the items {', '.join(stage.matrix)}")
    else:
        targets = outputs[:1]
    inputs = list(dict.fromkeys(path for job in stage.jobs for path in job.inputs))
    if not stage.matrix and stage.rule not in ("timeline", "memory"):
        # Of the many runs that a table is made of, the folders.
        records = {path for path in inputs if path.startswith("results/") and path.count("/") > 3}
        records -= {path for path in records if path.startswith("results/calibration/")}
        inputs = [*(prefixes if records else ()), *dict.fromkeys(path for path in inputs if path not in records)]
    file = rules[stage.rule]
    if not stage.rule.startswith("library"):
        inputs.append(f"results/library/rules/{stage.rule}.sha256")
    elif stage.rule != "library_of_rules":
        inputs += ["workflow/rules/common.smk", file]
    deps = sorted(inputs, key=lambda path: (path.startswith("dynatree/"), path))
    written: dict[str, Any] = {"desc": views.TOLD[stage.rule], **({"matrix": stage.matrix} if stage.matrix else {})}
    written |= {"cmd": f"{SNAKEMAKE} --cores 1 --snakefile {file} -- {' '.join(targets)}", "deps": deps}
    if stage.reads:
        written["params"] = stage.reads
    metrics = [path for path in outputs if path.endswith("metrics.json")]
    written["outs"] = [
        {path: {"cache": False}} if COMMITTED.fullmatch(path) else path for path in outputs if path not in metrics
    ]
    if metrics:
        written["metrics"] = [{path: {"cache": False}} for path in metrics]
    return written


def dry_run(root: Path, *options: str) -> str:
    """What Snakemake says that it would do to make all of the checkout `root`. Raises UserError if it says why not."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--forceall", *options, "--", "all"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"snakemake --dry-run: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    return done.stdout + done.stderr


def dvc_yaml(root: Path) -> str:
    """The text of dvc.yaml for the checkout `root`."""
    known = params.read(root / "params.yaml")
    stages = collect(known, plan(dry_run(root)))
    rules = {
        rule: str(path.relative_to(root))
        for path in sorted((root / "workflow/rules").glob("*.smk"))
        for rule in re.findall(r"^ *rule (\w+):", path.read_text(encoding="utf-8"), re.M)
    }
    prefixes = sorted({stage.prefix for stage in stages.values() if stage.prefix})
    order = list(READ)
    named = sorted(stages.items(), key=lambda item: order.index(item[1].rule))
    described = {name: at_its_scale(known, describe(stage, rules, prefixes)) for name, stage in named}
    needs = preflight.check_once(known, root / ".cache/checked")
    code = Checkout(root, keeps=True)
    mark = f"{shape.MARK}{shape.checksum(root, known, needs, code)}\n"
    body = {
        "stages": {"dvc_yaml": CHECK, **described},
        "plots": views.plots(known),
        "artifacts": at_its_scale(known, views.artifacts(known)),
    }
    return HEADER + mark + yaml.safe_dump(body, sort_keys=False, width=10**6, default_flow_style=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="checkout (default: here)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if dvc.yaml is not up to date")
    parser.add_argument("--quick", action="store_true", help="the same by its mark alone, in a second")
    arguments = parser.parse_args()
    with reported():
        path = arguments.root / "dvc.yaml"
        if arguments.quick:
            known = params.read(arguments.root / "params.yaml")
            needs = preflight.check_once(known, arguments.root / ".cache/checked")
            if shape.is_stale(arguments.root, known, needs, Checkout(arguments.root, keeps=True)):
                raise UserError(shape.STALE)
            return
        text = dvc_yaml(arguments.root)
        if not arguments.check:
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise UserError("dvc.yaml is not what the rules and params.yaml give; run `make dvc.yaml`")


if __name__ == "__main__":
    main()
