"""What dvc.yaml follows from, in one checksum: the shape of the parameters, the rules' files, and the code they run.

Values are no part of it: dvc.yaml takes them by template. Imports no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynatree import files, rule_checksums, settings
from dynatree.code_checksums import Checkout
from dynatree.study import grid
from dynatree.study.sections import KindOfText, Params

MARK = "# Shape: "
STALE = "dvc.yaml is not of these rules, parameters and imports; run `make dvc.yaml`"


def checksum(root: Path, params: Params, needs: Mapping[str, Any], code: Checkout) -> str:
    """SHA-256, in hexadecimal, for the checkout `root`; `needs` of each run (plugin_checks.py)."""
    rules = root / "workflow/rules"
    runs = {**grid.expand(params), **grid.passes(params)}
    stages = sorted(json.dumps(_stage(run, needs[run.folder])) for run in runs.values())
    pair, parts = params.pairs[params.pair], root / "drafters"
    drafters = {params.pair: pair.drafter, files.features_of(params.pair): pair.features}
    plugged = {f"decoding.{run.decoder}" for run in runs.values()}
    plugged |= {
        f"{settings.PLUGGED[knob]}.{value}"
        for run in runs.values()
        for knob, value in run.knobs
        if knob in settings.PLUGGED
    }
    plugged |= {f"figures.{figure}" for figure in params.figures}
    plugged |= {f"data.sources.{params.sources[name].kind}" for name in params.datasets}
    scripts = rule_checksums.scripts(rules)
    shape = {
        "scale": [params.scale, params.sizes.instead.model_dump(), "leaves_out" in params.sizes.model_fields_set],
        "stages": list(dict.fromkeys(stages)),
        "figures": params.figures,
        "drafters": [
            [source["kind"], params.distil.retrain, _shipped(parts / name, params.datasets)]
            for name, source in drafters.items()
            if source
        ],
        "datasets": [params.sources[name].kind for name in params.datasets],
        "tuning": [len(params.tuning), len(params.tuned_on)],
        "experiments": {title: _experiment(params, title) for title in params.experiments},
        "formats": sorted({run.dtype for run in runs.values()} - {params.dtype}),
        "device": params.device == "cpu",
        "rules": {rule: rule_checksums.files_of(rule, rules) for rule in rule_checksums.files(rules)},
        # Of each by itself: what one takes up may be another's already.
        "code": {script: sorted(code.used(script, [])) for script in scripts}
        | {plug: sorted(code.used(scripts[0], [f"dynatree.{plug}"])) for plug in sorted(plugged)},
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def is_stale(root: Path, params: Params, needs: Mapping[str, Any], code: Checkout) -> bool:
    """Whether dvc.yaml of the checkout `root` was made for another shape."""
    path = root / "dvc.yaml"
    mark = f"{MARK}{checksum(root, params, needs, code)}\n"
    return path.is_file() and mark not in path.read_text(encoding="utf-8")


def _stage(run: grid.Run, needs: Any) -> Any:
    """What the stage of a run follows from: its method's knobs without their numbers, and what it needs."""
    knobs = {knob: "number" if type(value) in (int, float) else value for knob, value in run.knobs}
    listed = ".settings." in run.key
    place = run.key.rpartition(f".{run.settings}")[0] if listed else run.key
    return [run.top, run.method, place, run.decoder, [*knobs.items()] * (not listed), needs, run.reads]


def _experiment(params: Params, title: str) -> Any:
    experiment, size = params.experiments[title], params.sizes.experiments.get(title)
    lists = [bool(experiment.prompt_tokens), bool(experiment.batches), bool(experiment.dtypes)]
    given = sorted(experiment.model_fields_set & KindOfText.model_fields.keys())
    like = {name: [variant.like, *variant.own] for name, variant in experiment.also.items()}
    return [lists, given, like, size is not None, bool(size and size.prompt_tokens)]


def _shipped(part: Path, datasets: list[str]) -> Any:
    """Files of a drafter's trained part, and which data sets it was trained on."""
    record = part / "record.json"
    known = json.loads(record.read_text(encoding="utf-8")).get("data", {}) if record.is_file() else {}
    return [sorted(path.name for path in part.glob("*.*")), [dataset in known for dataset in datasets]]
