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
from dynatree.files import drafter_of, features_of
from dynatree.generation.options import GenerationOptions
from dynatree.study import grid
from dynatree.study.consistency import PLAIN
from dynatree.study.sections import Method, Params

# How a drafter is had, besides the kinds of any model.
TRAINED = {"distil": Recipe}


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
    every = {f"methods.{name}": method for name, method in params.methods.items()}
    every |= {f"benchmark.also.{name}": compared[name] for name in params.benchmark.also}
    every |= {key: method for title in params.experiments for key, _, method in grid.methods(params, title)}
    for key, method in every.items():
        _check_reads(key, method)
    for name, tried in params.benchmark.grids.items():
        for knob, values in tried.items():
            for value in values:
                key = f"benchmark.grids.{name}.{knob}"
                check_method(key, compared[name].decoder, compared[name].knobs | {knob: value})
    for name, source in params.sources.items():
        module = plugins.load("data.sources", source.kind)
        checked(f"sources.{name}", partial(_parse, module.Parameters), source.origin)
    for name, pair in params.pairs.items():
        built = {"target": name, "drafter": drafter_of(name), "features": features_of(name)}
        for role, folder in built.items():
            if (model := getattr(pair, role)) is None:
                continue
            key = f"pairs.{name}.{role}"
            trained = checked(key, partial(model_sources.parse, also={} if role == "target" else TRAINED), model)
            home = Path("models", folder)
            if Path(model.get("path", ".")).resolve() == home.resolve():
                raise UserError(f"{key}.path: {home} is where the model is built, anew; move yours elsewhere")
            for dataset in model.get("mix", {}):
                if dataset not in params.sources:
                    known = ", ".join(params.sources)
                    raise UserError(f"{key}.mix: no data set {dataset!r}; choose one of {known}")
            _check_role(key, role, trained)
    _check_timeline(params)
    for figure in params.figures:
        _check_figure(figure, params)
    return needs


def _check_timeline(params: Params) -> None:
    """Only rounds of our own have phases to time."""
    timed = [name for name, method in params.methods.items() if _in_rounds(method)]
    if wrong := [name for name in params.timeline if name not in timed]:
        raise UserError(f"timeline: {wrong[0]} records no phases; choose of {', '.join(timed)}")


def _in_rounds(method: Method) -> bool:
    return issubclass(plugins.load("decoding", method.decoder).Decoder, decoding.RoundDecoder)


def _check_figure(figure: str, params: Params) -> None:
    """What a figure shows is asked for: its EXPERIMENT, a pass, or a second kind of text (SHOWS); of what it does not
    tell apart (ONE) there is one."""
    module = plugins.load("figures", figure)
    experiment, shown = getattr(module, "EXPERIMENT", None), getattr(module, "SHOWS", None)
    one: tuple[str, ...] = getattr(module, "ONE", ())
    reason = None
    if experiment and experiment not in params.experiments:
        reason = f"experiment {experiment}, which is not there"
    elif experiment and not _compares(params, experiment):
        reason = f"experiment {experiment}, which compares {PLAIN} decoding with nothing"
    elif experiment and (several := [key for key in one if len(_values(params, experiment, key)) > 1]):
        given = _values(params, experiment, several[0])
        raise UserError(
            f"experiments.{experiment}.{several[0]}: {given}; figure {figure} does not tell them apart: give one, or "
            f"leave the figure out, here or by scales.{params.scale}.leaves_out"
        )
    elif experiment and "batches" in one and (given := [n for n in params.experiments[experiment].batches if n > 1]):
        raise UserError(
            f"experiments.{experiment}.batches: {given}; figure {figure} is of requests decoded alone: give 1, or "
            f"leave the figure out, here or by scales.{params.scale}.leaves_out"
        )
    elif shown in ("timeline", "memory") and not getattr(params, shown):
        reason = f"what `{shown}` lists, which is no method"
    elif shown == "texts" and not any(map(partial(_is_another_kind, params), grid.expand(params).values())):
        reason = "a second kind of text, which no experiment has one of `methods` draft"
    if reason:
        place = f"scales.{params.scale}.leaves_out"
        raise UserError(f"figures: {figure} shows {reason}; leave the figure out, too, here or by {place}")


def _values(params: Params, title: str, key: str) -> list[Any]:
    """What an experiment varies by `key`, with what the scale adds."""
    return [*getattr(params.experiments[title], key), *getattr(params.sizes.of(title), key, ())]


def _compares(params: Params, title: str) -> bool:
    """Whether an experiment has another method, or formats, to compare autoregressive decoding with."""
    others = any(name != PLAIN for _, name, _ in grid.methods(params, title))
    return others or len(params.experiments[title].dtypes) > 1


def _is_another_kind(params: Params, run: grid.Run) -> bool:
    """Whether a run drafts text of another kind than the main run of its method, and is otherwise like it."""
    alike = run.prompt_tokens in (None, params.sizes.prompt_tokens) and run.batch == 1 and run.dtype == params.dtype
    drafts = run.method in params.methods and run.decoder not in ("autoregressive", "transformers")
    return bool(run.options) and alike and drafts


def _check_role(key: str, role: str, model: Any) -> None:
    """A drafter is a language model, and what stands under `features` reads the target's states."""
    if role == "drafter" and isinstance(model, Recipe) and model.reads:
        raise UserError(
            f"{key}.reads: {list(model.reads)}; a drafter that reads stands under `features`, beside another"
        )
    if role == "features" and not (isinstance(model, Recipe) and model.reads):
        raise UserError(
            f"{key}: kind {model.kind} that reads nothing; write kind: distil, with reads: layers of the target"
        )


def _check_reads(key: str, method: Method) -> None:
    """Only what drafts by forwards of its own can draft by a drafter that reads."""
    decoder = plugins.load("decoding", method.decoder).Decoder
    if method.reads and not decoder.needs(method.knobs).reads:
        raise UserError(f"{key}.reads: {method.reads}; this method drafts by no drafter of ours, leave it out")


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
