"""Parameters that only a plug-in can judge: knobs of methods, keys of sources and of models. Imports torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dynatree import decoding, plugins
from dynatree.config import checked
from dynatree.data import model_sources
from dynatree.distil.recipe import Recipe
from dynatree.errors import UserError
from dynatree.files import drafter_of
from dynatree.generation.options import GenerationOptions
from dynatree.study import grid
from dynatree.study.sections import Params


def check(params: Params) -> dict[str, dict[str, Any]]:
    """Have every plug-in check its own keys: methods, settings, kinds of text, sources, models; and what figures show.

    Returns what each run (by its folder) needs besides the target (decoding/__init__.py, `Needs`). Raises UserError.
    """
    needs = {folder: _needs(run) for folder, run in {**grid.expand(params), **grid.passes(params)}.items()}
    for title, experiment in params.experiments.items():
        checked(f"experiments.{title}", partial(_parse, GenerationOptions), {"max_new_tokens": 1, **experiment.options})
    for name, kind in params.benchmark.texts.items():
        checked(f"benchmark.texts.{name}", partial(_parse, GenerationOptions), {"max_new_tokens": 1, **kind.options})
    compared = params.benchmark.all_methods(params.methods)
    for name in params.benchmark.also:
        check_method(f"benchmark.also.{name}", compared[name].decoder, compared[name].knobs)
    for name, tried in params.benchmark.grids.items():
        for knob, values in tried.items():
            for value in values:
                key = f"benchmark.grids.{name}.{knob}"
                check_method(key, compared[name].decoder, compared[name].knobs | {knob: value})
    for name, source in params.sources.items():
        module = plugins.load("data.sources", source.kind)
        checked(f"sources.{name}", partial(_parse, module.Parameters), source.origin)
    for name, pair in params.pairs.items():
        checked(f"pairs.{name}.target", model_sources.parse, pair.target)
        checked(f"pairs.{name}.drafter", partial(model_sources.parse, also={"distil": Recipe}), pair.drafter)
        for role, model, built in (("target", pair.target, name), ("drafter", pair.drafter, drafter_of(name))):
            folder = Path("models", built)
            if Path(model.get("path", ".")).resolve() == folder.resolve():
                raise UserError(
                    f"pairs.{name}.{role}.path: {folder} is where the model is built, anew; move yours elsewhere"
                )
        for dataset in pair.drafter.get("mix", {}):
            if dataset not in params.sources:
                known = ", ".join(params.sources)
                raise UserError(f"pairs.{name}.drafter.mix: no data set {dataset!r}; choose one of {known}")
    for figure in params.figures:
        shown = getattr(plugins.load("figures", figure), "EXPERIMENT", None)
        if shown and shown not in params.experiments:
            raise UserError(
                f"figures: {figure} shows experiment {shown}, which is not there; leave the figure out, too"
            )
    return needs


def _parse(build: Callable[..., Any], keys: dict[str, Any]) -> Any:
    return build(**keys)


def _needs(run: grid.Run) -> dict[str, Any]:
    knobs = dict(run.knobs)
    check_method(run.key, run.decoder, knobs)
    checked(run.key, partial(decoding.check_batch, run.decoder), run.batch)
    needs: dict[str, Any] = plugins.load("decoding", run.decoder).Decoder.needs(knobs)._asdict()
    return needs


def check_method(key: str, decoder: str, knobs: dict[str, Any]) -> None:
    """Have the decoder plug-in (and its policy and drafter) check `knobs`; `key` names them in the error."""
    checked(key, plugins.load("decoding", decoder).Decoder.check, knobs)
