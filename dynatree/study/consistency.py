"""What one section of params.yaml says of another: names that must exist, must differ, or must not be taken.

Every check is a function of one section; the first that fails raises UserError, which begins with the key. Imports no
torch.
"""

import re
from collections.abc import Iterable, Sequence

from dynatree import plugins
from dynatree.config import QUANTISED
from dynatree.errors import UserError
from dynatree.settings import PLUGGED
from dynatree.study.sections import Experiment, Method, Params, Variant

# Names become parts of paths and of commands; those of methods are keys of metrics.json, beside the machine.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
TAKEN = ("machine",)
# Folders of results, and what the main runs are called in the tables.
RESERVED = ("runs", "headline", "timeline", "memory", "benchmark", "llama_cpp", "calibration", "perplexity")
# What every method is compared with.
PLAIN = "autoregressive"


def settle(params: Params) -> Params:
    """The parameters with what the active scale has instead, once every section agrees with the others."""
    check_names(params)
    check_scale(params)
    params = params.at_its_scale()
    for check in (
        check_format,
        check_pair_and_datasets,
        check_methods,
        check_experiments,
        check_sizes_of_experiments,
        check_benchmark,
        check_figures,
        check_sources,
        check_passes,
    ):
        check(params)
    return params.without_what_is_left_out()


def check_names(params: Params) -> None:
    """Names can be part of paths, and a method's is no other key of metrics.json."""
    for key in ("methods", "experiments", "scales", "pairs", "sources"):
        for name in getattr(params, key):
            check_name(key, name, TAKEN if key == "methods" else ())


def check_name(key: str, name: str, taken: Sequence[str] = ()) -> None:
    """It can be part of a path and of a command, and is none of those that are `taken`."""
    if not re.fullmatch(NAME, name) or name in taken:
        raise UserError(
            f"{key}: {name!r} is no name; take letters, digits, _, . and -, beginning with a letter "
            f"or digit{', and none of ' + ', '.join(taken) if taken else ''}"
        )


def check_format(params: Params) -> None:
    """Weights of few bits are for CPUs."""
    if params.dtype in QUANTISED and params.device != "cpu":
        raise UserError(f"dtype: {params.dtype} is for device cpu, not for {params.device}; write float32 or float16")


def check_scale(params: Params) -> None:
    """The scale exists; what any scale has instead exists, and the active one's data sets are one for one."""
    among("scale", [params.scale], params.scales)
    for title, scale in params.scales.items():
        key = f"scales.{title}.instead"
        if scale.instead.pair is not None:
            among(f"{key}.pair", [scale.instead.pair], params.pairs)
        among(f"{key}.datasets", scale.instead.datasets or (), params.sources)
        # Most figures of an experiment have its name.
        known = dict.fromkeys([*params.experiments, *plugins.names("figures")])
        among(f"scales.{title}.leaves_out", scale.leaves_out, known)
    instead = params.sizes.instead.datasets
    if instead is not None and len(instead) != len(params.datasets):
        place = f"scales.{params.scale}.instead.datasets"
        raise UserError(f"{place}: {instead}; give one for each of {params.datasets}, in order")


def check_pair_and_datasets(params: Params) -> None:
    """The pair and the data sets exist; no list names something twice."""
    among("pair", [params.pair], params.pairs)
    among("datasets", params.datasets, params.sources)
    for key in ("datasets", "tuning", "timeline", "memory", "figures"):
        values = getattr(params, key)
        if len(set(values)) < len(values):
            raise UserError(f"{key}: {values} names something twice")
    among("tuning", params.tuning, params.datasets)


def check_methods(params: Params) -> None:
    """Methods are made of plug-ins that exist, and autoregressive decoding is one of them."""
    for name, method in params.methods.items():
        check_plugs(f"methods.{name}", method)
    among("methods", [PLAIN], params.methods)


def check_experiments(params: Params) -> None:
    """Experiments take data sets and methods that exist, have autoregressive decoding, and fill their batches."""
    for title, experiment in params.experiments.items():
        key = f"experiments.{title}"
        if title in RESERVED:
            raise UserError(f"{key}: this name is taken; choose another than {', '.join(RESERVED)}")
        among(f"{key}.datasets", experiment.datasets, params.datasets)
        among(f"{key}.methods", experiment.methods, params.methods)
        among(f"{key}.settings", experiment.settings, params.methods)
        check_own_methods(key, experiment.also, params)
        among(f"{key}.methods", [PLAIN], experiment.methods)
        # Of one that is not run, no size is judged.
        if title not in params.sizes.leaves_out:
            check_batches(key, experiment, params.sizes.of(title).prompts, params.scale)


def check_batches(key: str, experiment: Experiment, prompts: int, scale: str) -> None:
    """Every batch of an experiment is full."""
    if wrong := [batch for batch in experiment.batches if prompts % batch]:
        raise UserError(
            f"{key}.batches: {wrong[0]} does not divide the {prompts} prompts of scales.{scale}.experiments; "
            "a smaller batch would be left over"
        )


def check_sizes_of_experiments(params: Params) -> None:
    """What a scale adds to an experiment extends a list that the experiment has, by what it lacks."""
    for title, scale in params.scales.items():
        for name, size in scale.experiments.items():
            among(f"scales.{title}.experiments", [name], ["default", *params.experiments])
            key, experiment = f"scales.{title}.experiments.{name}", params.experiments.get(name)
            known = experiment.settings if experiment else {}
            for swept, listed in size.settings.items():
                among(f"{key}.settings", [swept], known)
                if twins := sorted({text for text in listed if [*listed, *known[swept]].count(text) > 1}):
                    raise UserError(f"{key}.settings.{swept}: {twins[0]} stands there twice")
            lengths = experiment.prompt_tokens if experiment else []
            if size.prompt_tokens and not lengths:
                raise UserError(
                    f"{key}.prompt_tokens: the experiment has no prompt_tokens, to which these could be added"
                )
            if known_already := sorted(set(lengths) & set(size.prompt_tokens)):
                raise UserError(f"{key}.prompt_tokens: {known_already[0]} is one of the experiment's already")


def check_benchmark(params: Params) -> None:
    """The benchmark compares methods that exist, with those that it compares them with among them."""
    benchmark = params.benchmark
    check_own_methods("benchmark", benchmark.also, params)
    among("benchmark.methods", benchmark.methods, params.methods)
    among("benchmark.methods", [PLAIN, "transformers"], benchmark.methods)
    for key in ("grids", "repeated"):
        among(f"benchmark.{key}", getattr(benchmark, key), [*benchmark.methods, *benchmark.also])


def check_figures(params: Params) -> None:
    """Figures are plug-ins that exist."""
    among("figures", params.figures, plugins.names("figures"))


def check_sources(params: Params) -> None:
    """Kinds of text are plug-ins that exist."""
    for name, source in params.sources.items():
        among(f"sources.{name}.kind", [source.kind], plugins.names("data.sources"))


def check_passes(params: Params) -> None:
    """Timeline and memory are of methods that exist."""
    for key in ("timeline", "memory"):
        among(key, getattr(params, key), params.methods)


def check_own_methods(key: str, also: dict[str, Variant], params: Params) -> None:
    """Methods under `also` are like one that exists, or made of plug-ins that exist, under names of their own."""
    for name, variant in also.items():
        check_name(f"{key}.also", name)
        if variant.like is not None:
            among(f"{key}.also.{name}.like", [variant.like], params.methods)
        check_plugs(f"{key}.also.{name}", variant.method(params.methods))
        if name in params.methods:
            raise UserError(f"{key}.also: {name!r} is one of `methods`; choose another name")


def check_plugs(key: str, method: Method) -> None:
    """The plug-ins that a method is made of exist."""
    among(f"{key}.decoder", [method.decoder], plugins.names("decoding"))
    for knob, folder in PLUGGED.items():
        if knob in method.knobs:
            among(f"{key}.{knob}", [method.knobs[knob]], plugins.names(folder))


def among(key: str, values: Iterable[str], choices: Iterable[str]) -> None:
    """Every value is one of the choices."""
    choices = list(choices)
    for value in values:
        if value not in choices:
            raise UserError(f"{key}: no {value!r}; choose one of {', '.join(choices)}")
