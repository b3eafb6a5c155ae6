"""params.yaml: read once, at the edge, and checked, with errors that name the key, the value and the choices.

Imports neither torch nor transformers, so that a workflow tool can read parameters in no time; knobs are checked by
the plug-ins that take them (`check_knobs`), which does import them.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dynatree import plugins
from dynatree.errors import UserError
from dynatree.files import read_json, write_json
from dynatree.knobs import Knobs

# Knobs of a method whose values name plug-ins, with the plug-ins' folders.
PLUGGED = {"policy": "policies", "drafting": "drafting"}


class Calibration(Knobs):
    """Tuning prompts a data set and tokens of their continuations; contexts to time behind, forwards of each size."""

    prompts: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    contexts: list[int] = Field(min_length=1)
    repeats: int = Field(ge=1)

    @field_validator("contexts")
    @classmethod
    def _ascending(cls, contexts: list[int]) -> list[int]:
        if contexts != sorted(set(contexts)) or contexts[0] < 1:
            raise ValueError("expected ascending numbers of tokens, 1 or more")
        return contexts


class BenchmarkSize(Knobs):
    """Prompts a data set and tokens of their outputs; the same for tuning."""

    prompts: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    tuning_prompts: int = Field(ge=1)
    tuning_output_tokens: int = Field(ge=2)


class Scale(Knobs):
    """How much of everything; lengths in tokens."""

    prompts: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    repeats: int = Field(ge=1)
    sweep_prompts: int = Field(ge=1)
    sweep_output_tokens: int = Field(ge=2)
    timeline_tokens: int = Field(ge=2)
    reference_seconds: float = Field(gt=0)
    perplexity_tokens: int = Field(ge=2)
    perplexity_window: int = Field(ge=2)
    perplexity_stride: int = Field(ge=1)
    drafter_report_tokens: int = Field(ge=1)
    calibration: Calibration
    benchmark: BenchmarkSize

    @model_validator(mode="after")
    def _overlapping(self) -> Self:
        if self.perplexity_stride >= self.perplexity_window:
            raise ValueError(
                f"perplexity_stride {self.perplexity_stride}: choose less than the window, {self.perplexity_window}"
            )
        return self


class Method(BaseModel):
    """A decoder and its knobs."""

    model_config = ConfigDict(extra="allow", frozen=True)
    decoder: str

    @property
    def knobs(self) -> dict[str, Any]:
        """Everything but the decoder's name."""
        return dict(self.model_extra or {})


class Sweep(Knobs):
    """Further settings of one method on one data set."""

    method: str
    dataset: str
    settings: list[str]

    @field_validator("settings")
    @classmethod
    def _once(cls, settings: list[str]) -> list[str]:
        twice = sorted({s for s in settings if settings.count(s) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands there twice")
        return settings


class Penalised(Knobs):
    """Methods run again on one data set with logits processors (processors.py), so that the text does not loop."""

    dataset: str
    methods: list[str]
    repetition_penalty: float
    no_repeat_ngram: int

    @property
    def processors(self) -> dict[str, Any]:
        """The processors' own keys."""
        return {"repetition_penalty": self.repetition_penalty, "no_repeat_ngram": self.no_repeat_ngram}


class Benchmark(Knobs):
    """Methods compared side by side: some of `methods`, and some that only the benchmark runs.

    `grids`: values of a method's knobs, of which the fastest combination on tuning text is taken.
    """

    methods: list[str]
    also: dict[str, Method]
    grids: dict[str, dict[str, list[Any]]]

    def all_methods(self, methods: dict[str, Method]) -> dict[str, Method]:
        """Every method that is compared, by name, in order."""
        return {name: methods[name] for name in self.methods} | self.also


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

    scale: str
    pair: str
    datasets: list[str] = Field(min_length=1)
    seed: int = Field(ge=0)
    dtype: Literal["float32", "float64", "bfloat16", "float16"]
    device: Literal["cpu", "cuda"]
    threads: int | None = Field(ge=1)
    distil: Distil
    methods: dict[str, Method]
    sweep: Sweep
    penalised: Penalised
    benchmark: Benchmark
    timeline: list[str]
    figures: list[str]
    scales: dict[str, Scale]
    pairs: dict[str, Pair]
    sources: dict[str, Source]

    @property
    def sizes(self) -> Scale:
        """The active scale."""
        return self.scales[self.scale]


def default_path() -> Path:
    """params.yaml of the working directory, else the one that ships with the package or stands in its checkout."""
    here = Path(__file__).resolve().parent
    return next(p for p in (Path("params.yaml"), here / "params.yaml", here.parent / "params.yaml") if p.is_file())


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

    among("scale", params.scale, list(params.scales))
    among("pair", params.pair, list(params.pairs))
    for dataset in params.datasets:
        among("datasets", dataset, list(params.sources))
    for name, method in params.methods.items():
        among(f"methods.{name}.decoder", method.decoder, plugins.names("decoding"))
        for knob, folder in PLUGGED.items():
            if knob in method.knobs:
                among(f"methods.{name}.{knob}", method.knobs[knob], plugins.names(folder))
    among("methods", "autoregressive", list(params.methods))
    among("sweep.method", params.sweep.method, list(params.methods))
    among("sweep.dataset", params.sweep.dataset, params.datasets)
    among("penalised.dataset", params.penalised.dataset, params.datasets)
    for name in params.penalised.methods:
        among("penalised.methods", name, list(params.methods))
    among("penalised.methods", "autoregressive", params.penalised.methods)
    for name in params.benchmark.methods:
        among("benchmark.methods", name, list(params.methods))
    for name in ("autoregressive", "transformers"):
        among("benchmark.methods", name, params.benchmark.methods)
    for name in params.benchmark.grids:
        among("benchmark.grids", name, [*params.benchmark.methods, *params.benchmark.also])
    for name in params.timeline:
        among("timeline", name, list(params.methods))
    for name in params.figures:
        among("figures", name, plugins.names("figures"))
    for name, source in params.sources.items():
        among(f"sources.{name}.kind", source.kind, plugins.names("sources"))
    lists = {"datasets": params.datasets, "timeline": params.timeline, "figures": params.figures}
    for key, values in {**lists, "penalised.methods": params.penalised.methods}.items():
        if len(set(values)) < len(values):
            raise UserError(f"{origin}: {key}: {values} names something twice")
    return params


def check_knobs(params: Params) -> dict[str, dict[str, Any]]:
    """Have every plug-in check its own keys: methods, sweep settings, sources, models. Imports torch.

    Returns what each method needs besides the target (decoding/__init__.py, `Needs`).
    """
    from dynatree import grid, weights
    from dynatree.processors import Processors

    checked("penalised", lambda keys: Processors(**keys), params.penalised.processors)
    for name, method in params.methods.items():
        check_method(f"methods.{name}", method.decoder, method.knobs)
    compared = params.benchmark.all_methods(params.methods)
    for name, method in params.benchmark.also.items():
        check_method(f"benchmark.also.{name}", method.decoder, method.knobs)
    for name, tried in params.benchmark.grids.items():
        for knob, values in tried.items():
            for value in values:
                key = f"benchmark.grids.{name}.{knob}"
                check_method(key, compared[name].decoder, compared[name].knobs | {knob: value})
    swept = params.methods[params.sweep.method]
    for settings in params.sweep.settings:
        check_method(f"sweep.settings.{settings}", swept.decoder, grid.with_settings(swept.knobs, settings))
    for name, source in params.sources.items():
        module = plugins.load("sources", source.kind)
        checked(f"sources.{name}", lambda keys, module=module: module.Parameters(**keys), source.origin)
    for name, pair in params.pairs.items():
        checked(f"pairs.{name}.target", weights.parse, pair.target)
        checked(f"pairs.{name}.drafter", weights.parse, pair.drafter)
        for dataset in pair.drafter.get("mix", {}):
            if dataset not in params.sources:
                known = ", ".join(params.sources)
                raise UserError(f"pairs.{name}.drafter.mix: no data set {dataset!r}; choose one of {known}")
    return {
        name: plugins.load("decoding", method.decoder).Decoder.needs(method.knobs)._asdict()
        for name, method in params.methods.items()
    }


def check_method(key: str, decoder: str, knobs: dict[str, Any]) -> None:
    """Have the decoder plug-in (and its policy and drafter) check `knobs`; `key` names them in the error."""
    checked(key, plugins.load("decoding", decoder).Decoder.check, knobs)


def check_knobs_once(params: Params, stamps: Path) -> Any:
    """`check_knobs`, unless it passed before for the same parameters and library: a stamp in `stamps` keeps its answer.

    A job graph is made for every stage, and importing torch each time would cost more than most stages.
    """
    here = Path(__file__).resolve().parent
    state = [params.model_dump_json()]
    state += [f"{p.relative_to(here)} {p.stat().st_mtime_ns} {p.stat().st_size}" for p in sorted(here.rglob("*.py"))]
    stamp = stamps / hashlib.sha256("\n".join(state).encode()).hexdigest()
    if not stamp.is_file():
        write_json(stamp, check_knobs(params))
    return read_json(stamp)


def checked(key: str, build: Any, values: dict[str, Any]) -> Any:
    """`build(values)`. Raises UserError, beginning with `key`, where pydantic or a plug-in refuses them."""
    try:
        return build(values)
    except (ValidationError, TypeError) as error:
        raise UserError(f"{key}: {explain(error)}") from error
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def explain(error: Exception) -> str:
    """One line for a pydantic error: the key, what is wrong, the value received."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        value = problem.get("input")
        shown = "" if problem["type"] == "missing" or isinstance(value, dict) else f" (got {value!r})"
        lines.append(f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}{shown}")
    return "; ".join(lines)
