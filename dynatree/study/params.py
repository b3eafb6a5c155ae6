"""params.yaml: read once, at the edge, and checked, with errors that name the key, the value and the choices.

Imports neither torch nor transformers, so that a workflow tool can read parameters in no time; knobs are checked by
the plug-ins that take them (checks.py), which does import them.
"""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import dynatree
from dynatree import plugins
from dynatree.config import MOST_THREADS, Knobs, explain
from dynatree.errors import UserError
from dynatree.study.scales import DataType, Device, Scale, from_one, once

# Names become parts of paths and of commands; those of methods are keys of metrics.json, beside others of its own.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
TAKEN = ("machine", "autoregressive_step", "lengths", "datasets")
# Knobs of a method whose values name plug-ins, with the plug-ins' folders.
PLUGGED = {"policy": "policies", "drafting": "drafting"}
# Folders of results, and what the main runs are called in the tables.
RESERVED = ("runs", "headline", "timeline", "memory", "benchmark", "quantised", "calibration", "perplexity")


class Method(BaseModel):
    """A decoder and its knobs."""

    model_config = ConfigDict(extra="allow", frozen=True)
    decoder: str

    @property
    def knobs(self) -> dict[str, Any]:
        """Everything but the decoder's name."""
        return dict(self.model_extra or {})


class Experiment(Knobs):
    """Runs beside the headline, compared with one another: methods on data sets, under conditions.

    `settings`: further settings of a method, as they stand in a path. `also`: methods that only this experiment runs.
    `prompt_tokens`, `batches`: lengths of prompts and numbers of requests decoded together; none: the scale's, and 1.
    `repetition_penalty`, `no_repeat_ngram_size`: logits processors (generation/logits_processors.py).
    """

    datasets: list[str] = Field(min_length=1)
    methods: list[str]
    settings: dict[str, list[str]] = Field(default_factory=dict)
    also: dict[str, Method] = Field(default_factory=dict)
    prompt_tokens: list[int] = Field(default_factory=list)
    batches: list[int] = Field(default_factory=list)
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    @property
    def processors(self) -> dict[str, Any]:
        """The processors' own keys, if any of them does something."""
        keys = {"repetition_penalty": self.repetition_penalty, "no_repeat_ngram_size": self.no_repeat_ngram_size}
        return keys if keys != {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0} else {}

    @field_validator("datasets", "methods", "prompt_tokens", "batches")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        return once(values)

    @field_validator("settings")
    @classmethod
    def _each_once(cls, settings: dict[str, list[str]]) -> dict[str, list[str]]:
        return {method: once(listed) for method, listed in settings.items()}

    @field_validator("prompt_tokens", "batches")
    @classmethod
    def _positive(cls, values: list[int]) -> list[int]:
        return from_one(values)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        named = [*self.methods, *self.settings, *self.also]
        if twins := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"{twins[0]} stands in more than one of methods, settings, also")
        return self


class Benchmark(Knobs):
    """Methods compared side by side: some of `methods`, and some that only the benchmark runs.

    `texts`: kinds of text by name, each with its logits processors (generation/logits_processors.py).
    `grids`: values of a method's knobs, of which the fastest combination on tuning text is taken.
    `repeated`: methods whose slowest prompt is timed again, to tell a slow prompt from a slow moment.
    `quantised`: values of `draft_tokens` and `max_ngram` to try in llama.cpp's prompt lookup (`make quantised`).
    """

    texts: dict[str, dict[str, Any]]
    methods: list[str]
    also: dict[str, Method]
    grids: dict[str, dict[str, list[Any]]]
    repeated: list[str] = Field(default_factory=list)
    quantised: dict[str, list[int]] = Field(default_factory=dict)

    def all_methods(self, methods: dict[str, Method]) -> dict[str, Method]:
        """Every method that is compared, by name, in order."""
        return {name: methods[name] for name in self.methods} | self.also


class Limits(Knobs):
    """What stops a slip of the pen from starting a year of work: the most generation runs."""

    runs: int = Field(ge=1)


class Pair(Knobs):
    """Where a target and its drafter come from: `kind` and that kind's keys (dynatree/weights.py)."""

    target: dict[str, Any]
    drafter: dict[str, Any]


class Distil(Knobs):
    """How the drafter is had: trained afresh, or from its trained part where the checkout has one."""

    retrain: bool


class Source(BaseModel):
    """A data set: `kind` names a plug-in of dynatree/sources; other keys are its own."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str
    start: Literal["body", "interior"]
    evaluation_share: float = Field(gt=0, lt=1)

    @property
    def origin(self) -> dict[str, Any]:
        """The plug-in's own keys."""
        return dict(self.model_extra or {})


class Params(Knobs):
    """The whole of params.yaml."""

    scale: str  # how much of everything: one of `scales`
    pair: str  # target and drafter: one of `pairs`
    datasets: list[str] = Field(min_length=1)  # of `sources`; every method runs on each
    seed: int = Field(ge=0)  # of splits, prompts, training and random models
    dtype: DataType  # of the models
    device: Device  # where they compute
    threads: int | None = Field(ge=1, le=MOST_THREADS)  # of timed jobs; null: the physical cores
    distil: Distil  # whether the drafter is trained afresh
    methods: dict[str, Method]  # by name
    experiments: dict[str, Experiment]  # runs beside the main ones, by name
    benchmark: Benchmark  # methods side by side in one process
    timeline: list[str]  # methods whose phases are timed
    memory: list[str]  # methods whose peak of memory is taken
    figures: list[str]  # to draw
    limits: Limits  # on what a slip may start
    scales: dict[str, Scale]  # by name
    pairs: dict[str, Pair]  # by name
    sources: dict[str, Source]  # of text, by name

    @property
    def sizes(self) -> Scale:
        """The active scale."""
        return self.scales[self.scale]

    def at_its_scale(self) -> "Params":
        """With what the active scale has instead."""
        given = {key: value for key, value in self.sizes.instead if value is not None}
        renamed = dict(zip(self.datasets, given.get("datasets", self.datasets), strict=True))
        experiments = {
            title: experiment.model_copy(update={"datasets": [renamed.get(name, name) for name in experiment.datasets]})
            for title, experiment in self.experiments.items()
        }
        return self.model_copy(update={**given, "experiments": experiments})


def default_path() -> Path:
    """params.yaml of the working directory, else the one that ships with the package or stands in its checkout.

    In a folder of another project its params.yaml is not meant: that of this one has a line `methods:`.
    """
    here, local = Path(dynatree.__file__).resolve().parent, Path("params.yaml")
    if local.is_file() and "\nmethods:" in local.read_text(encoding="utf-8", errors="replace"):
        return local
    return next(path for path in (here / "params.yaml", here.parent / "params.yaml") if path.is_file())


class _Loader(yaml.SafeLoader):
    """YAML with each key once; of a key that stands there twice, YAML's own loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                key, line = key_node.value, key_node.start_mark.line + 1
                if key in lines:
                    raise yaml.YAMLError(f"line {line}: key {key!r} stands there twice, first in line {lines[key]}")
                lines[key] = line
        return super().construct_mapping(node, deep)


def load(path: str | Path) -> Any:
    """The plain values of a YAML file. Raises UserError: no file, no YAML, a key that stands there twice."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def read(path: str | Path | None = None) -> Params:
    """The checked parameters of a YAML file. Raises UserError: as `load`, and a wrong key or value."""
    path = Path(path) if path else default_path()
    return check(load(path), str(path))


def check(raw: Any, origin: str = "params.yaml") -> Params:
    """Parameters from plain values, checked except for what needs torch."""
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: expected keys and values, got {type(raw).__name__}")
    try:
        params = Params(**raw)
    except (ValidationError, TypeError) as error:
        raise UserError(f"{origin}: {explain(error)}") from error

    def among(key: str, value: str, choices: list[str]) -> None:
        if value not in choices:
            raise UserError(f"{origin}: {key}: no {value!r}; choose one of {', '.join(choices)}")

    for key in ("methods", "experiments", "scales", "pairs", "sources"):
        for name in getattr(params, key):
            if not re.fullmatch(NAME, name) or (key == "methods" and name in TAKEN):
                raise UserError(
                    f"{origin}: {key}: {name!r} is no name; take letters, digits, _, . and -, beginning with a letter "
                    f"or digit{', and none of ' + ', '.join(TAKEN) if key == 'methods' else ''}"
                )
    among("scale", params.scale, list(params.scales))
    for title, scale in params.scales.items():
        key = f"scales.{title}.instead"
        if scale.instead.pair is not None:
            among(f"{key}.pair", scale.instead.pair, list(params.pairs))
        for name in scale.instead.datasets or ():
            among(f"{key}.datasets", name, list(params.sources))
    instead = params.sizes.instead.datasets
    if instead is not None and len(instead) != len(params.datasets):
        place = f"scales.{params.scale}.instead.datasets"
        raise UserError(f"{origin}: {place}: {instead}; give one for each of {params.datasets}, in order")
    params = params.at_its_scale()
    among("pair", params.pair, list(params.pairs))
    for dataset in params.datasets:
        among("datasets", dataset, list(params.sources))

    for key in ("datasets", "timeline", "memory", "figures"):
        values = getattr(params, key)
        if len(set(values)) < len(values):
            raise UserError(f"{origin}: {key}: {values} names something twice")

    def check_plugs(key: str, method: Method) -> None:
        among(f"{key}.decoder", method.decoder, plugins.names("decoding"))
        for knob, folder in PLUGGED.items():
            if knob in method.knobs:
                among(f"{key}.{knob}", method.knobs[knob], plugins.names(folder))

    methods = list(params.methods)
    for name, method in params.methods.items():
        check_plugs(f"methods.{name}", method)
    among("methods", "autoregressive", methods)
    for title, experiment in params.experiments.items():
        key = f"experiments.{title}"
        if title in RESERVED:
            raise UserError(f"{origin}: {key}: this name is taken; choose another than {', '.join(RESERVED)}")
        for dataset in experiment.datasets:
            among(f"{key}.datasets", dataset, params.datasets)
        for name in experiment.methods:
            among(f"{key}.methods", name, methods)
        for name in experiment.settings:
            among(f"{key}.settings", name, methods)
        for name, method in experiment.also.items():
            check_plugs(f"{key}.also.{name}", method)
            if name in methods:
                raise UserError(f"{origin}: {key}.also: {name!r} is one of `methods`; choose another name")
        among(f"{key}.methods", "autoregressive", experiment.methods)
        count = params.sizes.of(title).prompts
        if wrong := [batch for batch in experiment.batches if count % batch]:
            raise UserError(
                f"{origin}: {key}.batches: {wrong[0]} does not divide the {count} prompts of "
                f"scales.{params.scale}.experiments; a smaller batch would be left over"
            )
    for title, scale in params.scales.items():
        for name, size in scale.experiments.items():
            among(f"scales.{title}.experiments", name, ["default", *params.experiments])
            known = params.experiments[name].settings if name in params.experiments else {}
            for swept, listed in size.settings.items():
                key = f"scales.{title}.experiments.{name}.settings"
                among(key, swept, list(known))
                if twins := sorted({text for text in listed if [*listed, *known[swept]].count(text) > 1}):
                    raise UserError(f"{origin}: {key}.{swept}: {twins[0]} stands there twice")
            lengths = params.experiments[name].prompt_tokens if name in params.experiments else []
            key = f"{origin}: scales.{title}.experiments.{name}.prompt_tokens"
            if size.prompt_tokens and not lengths:
                raise UserError(f"{key}: the experiment has no prompt_tokens, to which these could be added")
            if known_already := sorted(set(lengths) & set(size.prompt_tokens)):
                raise UserError(f"{key}: {known_already[0]} is one of the experiment's already")
    for name, method in params.benchmark.also.items():
        check_plugs(f"benchmark.also.{name}", method)
        if name in methods:
            raise UserError(f"{origin}: benchmark.also: {name!r} is one of `methods`; choose another name")
    for name in params.benchmark.methods:
        among("benchmark.methods", name, methods)
    for name in ("autoregressive", "transformers"):
        among("benchmark.methods", name, params.benchmark.methods)
    for key in ("grids", "repeated"):
        for name in getattr(params.benchmark, key):
            among(f"benchmark.{key}", name, [*params.benchmark.methods, *params.benchmark.also])
    for name in params.benchmark.quantised:
        among("benchmark.quantised", name, ["draft_tokens", "max_ngram"])
    for name in params.figures:
        among("figures", name, plugins.names("figures"))
    for name, source in params.sources.items():
        among(f"sources.{name}.kind", source.kind, plugins.names("data.sources"))
    for key in ("timeline", "memory"):
        for name in getattr(params, key):
            among(key, name, methods)
    return params
