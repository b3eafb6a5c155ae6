"""From parameters to runs: which folders hold which generation runs. A run's knobs are in its path.

So a changed D, B or tau is a missing file, and equal runs are one entry. Knows no workflow tool and no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from dynatree import settings
from dynatree.config import checked
from dynatree.errors import UserError
from dynatree.study.sections import Method, Params


@dataclass(frozen=True)
class Run:
    """One job: a method with its knobs over the prompts of a data set. `key`: where it is set in params.yaml.

    `prompt_tokens` None: of the scale's length. `dtype`: the format of the models. `top`: the first folder below the
    results. `options`: of the generations (generation/options.py). `conditions`: what else tells this run from others
    of its experiment, as folder names. `reads`: it drafts by the pair's drafter that reads the target's states.
    """

    key: str
    top: str
    method: str
    settings: str
    dataset: str
    decoder: str
    knobs: tuple[tuple[str, Any], ...]
    prompts: int
    output_tokens: int
    dtype: str
    repeats: int = 1
    prompt_tokens: int | None = None
    batch: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    conditions: tuple[str, ...] = ()
    reads: bool = False

    @property
    def folder(self) -> str:
        """Below the results folder."""
        return f"{self.top}/{self.method}/{self.settings}/{self.place}"

    @property
    def place(self) -> str:
        """The end of the folder: conditions and data set."""
        return "/".join([*self.conditions, self.dataset])

    @property
    def length(self) -> str:
        """Folder of prompts of this run's length, below the pair's."""
        return length(self.prompt_tokens)


def length(prompt_tokens: int | None) -> str:
    """Folder name of prompts of so many tokens; None: of the scale's number."""
    return "default" if prompt_tokens is None else f"P{prompt_tokens}"


def reads(params: Params, method: Method) -> bool:
    """Whether a method drafts by the drafter of the pair that reads the target's states: where there is one."""
    return method.reads and params.pairs[params.pair].features is not None


def _run(params: Params, key: str, top: str, name: str, method: Method, dataset: str, **sizes: Any) -> Run:
    return Run(
        key=key,
        top=top,
        method=name,
        settings=settings.write(method.knobs),
        dataset=dataset,
        decoder=method.decoder,
        knobs=tuple(method.knobs.items()),
        reads=reads(params, method),
        **sizes,
    )


def expand(params: Params) -> dict[str, Run]:
    """Every generation run, by its folder: the headline and all experiments.

    Raises UserError for more runs than `limits.runs`.
    """
    sizes = params.sizes
    main: dict[str, Any] = {
        "prompts": sizes.prompts,
        "output_tokens": sizes.output_tokens,
        "repeats": sizes.repeats,
        "dtype": params.dtype,
    }
    runs = [
        _run(params, f"methods.{name}", "runs", name, method, dataset, **main)
        for name, method in params.methods.items()
        for dataset in params.datasets
    ]
    runs += [run for title in params.experiments for run in _experiment(params, title)]
    if len(runs) > params.limits.runs:
        raise UserError(
            f"limits.runs: {len(runs)} generation runs are asked for, more than {params.limits.runs}; "
            "shorten the lists, or raise the limit"
        )
    return {run.folder: run for run in runs}


def methods(params: Params, title: str) -> Iterator[tuple[str, str, Method]]:
    """(key in params.yaml, name, method with its knobs) of everything that an experiment runs."""
    experiment = params.experiments[title]
    for name in experiment.methods:
        yield f"methods.{name}", name, params.methods[name]
    further = {f"experiments.{title}": experiment.settings}
    if title in params.sizes.experiments:
        further[f"scales.{params.scale}.experiments.{title}"] = params.sizes.experiments[title].settings
    for place, settings_of in further.items():
        for name, listed in settings_of.items():
            usual = params.methods[name]
            for text in listed:
                key = f"{place}.settings.{name}.{text}"
                knobs = checked(key, partial(settings.change, usual.knobs), text)
                yield key, name, Method(**usual.model_dump() | knobs)
    for name, variant in experiment.also.items():
        yield f"experiments.{title}.also.{name}", name, variant.method(params.methods)


def _experiment(params: Params, title: str) -> Iterator[Run]:
    experiment, sizes = params.experiments[title], params.sizes.of(title)
    lengths: Sequence[int | None] = [*experiment.prompt_tokens, *sizes.prompt_tokens] or [None]
    for key, name, method in methods(params, title):
        for dataset in experiment.datasets:
            for tokens, batch, dtype in product(
                lengths, experiment.batches or [1], experiment.dtypes or [params.dtype]
            ):
                conditions = [f"P{tokens}"] if experiment.prompt_tokens else []
                conditions += [f"b{batch}"] if experiment.batches else []
                conditions += [dtype] if experiment.dtypes else []
                yield _run(
                    params,
                    key,
                    title,
                    name,
                    method,
                    dataset,
                    prompts=sizes.prompts,
                    output_tokens=sizes.output_tokens,
                    dtype=dtype,
                    prompt_tokens=tokens,
                    batch=batch,
                    conditions=tuple(conditions),
                    options=tuple(experiment.options.items()),
                )


def passes(params: Params) -> dict[str, Run]:
    """The passes over one prompt of the first data set, by folder: phases timed one by one, and memory."""
    one: dict[str, Any] = {"prompts": 1, "dtype": params.dtype}
    lengths = {"timeline": params.sizes.timeline_tokens, "memory": params.sizes.output_tokens}
    runs = [
        _run(
            params, f"methods.{name}", top, name, params.methods[name], params.datasets[0], output_tokens=tokens, **one
        )
        for top, tokens in lengths.items()
        for name in getattr(params, top)
    ]
    return {run.folder: run for run in runs}


class Prompts(NamedTuple):
    """Prompts of one length: how many a data set, tokens of each, and of the text that must follow."""

    number: int
    tokens: int
    reserve: int


def prompts(params: Params) -> dict[tuple[str, str], Prompts]:
    """The prompts that runs need, by (folder name of their length, data set)."""
    found: dict[tuple[str, str], Prompts] = {}
    for run in {**expand(params), **passes(params)}.values():
        place = run.length, run.dataset
        before = found.get(place, Prompts(0, 0, 0))
        tokens = run.prompt_tokens or params.sizes.prompt_tokens
        found[place] = Prompts(max(before.number, run.prompts), tokens, max(before.reserve, run.output_tokens))
    return found
