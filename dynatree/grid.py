"""From parameters to runs: which folders hold which generation runs. A run's knobs stand in its path.

So a changed D, B or tau is a missing file, and equal runs are one entry. Knows no workflow tool and no torch.
"""

import re
from dataclasses import dataclass
from typing import Any

from dynatree.errors import UserError
from dynatree.params import PLUGGED, Method, Params

# The field's one-letter symbols; a knob without one stands in a path by its own name.
SYMBOLS = {
    "depth": "D",
    "branch": "B",
    "threshold": "tau",
    "budget": "N",
    "draft_tokens": "K",
    "max_ngram": "n",
    "confidence": "c",
}


@dataclass(frozen=True)
class Run:
    """One job of generation: a method with its knobs over the prompts of a data set."""

    experiment: str
    method: str
    settings: str
    dataset: str
    decoder: str
    knobs: tuple[tuple[str, Any], ...]
    prompts: int
    output_tokens: int
    repeats: int

    @property
    def folder(self) -> str:
        """Below the results folder."""
        top = "runs" if self.experiment == "headline" else self.experiment
        return f"{top}/{self.method}/{self.settings}/{self.dataset}"


def settings(knobs: dict[str, Any]) -> str:
    """The path part of these knobs (D8_B3_tau0.03_N64), in their own order; `default` if there are none.

    Which plug-ins a method is made of is told by its name.
    """
    parts = [f"{SYMBOLS.get(knob, knob)}{value}" for knob, value in knobs.items() if knob not in PLUGGED]
    return "_".join(parts) or "default"


def parse_settings(text: str) -> dict[str, Any]:
    """The inverse of `settings`. Raises UserError for a symbol it does not know."""
    names = {symbol: knob for knob, symbol in SYMBOLS.items()}
    knobs: dict[str, Any] = {}
    for part in text.split("_"):
        match = re.fullmatch(r"([A-Za-z]+?)(None|-?\d+(?:\.\d+)?(?:e-?\d+)?)", part)
        if not match or match[1] not in names:
            raise UserError(
                f"settings {text!r}: cannot read {part!r}; write symbols of {', '.join(names)} with numbers or None, "
                "joined by _, such as D8_B3_tau0.03_N64"
            )
        number = match[2]
        knobs[names[match[1]]] = (
            None if number == "None" else float(number) if re.search(r"[.e]", number) else int(number)
        )
    return knobs


def with_settings(knobs: dict[str, Any], text: str) -> dict[str, Any]:
    """`knobs` with those of `text` put in. Raises UserError if `text` is not how they would be written in a path."""
    changed = parse_settings(text)
    unknown = [SYMBOLS[knob] for knob in changed if knob not in knobs]
    if unknown:
        raise UserError(f"settings {text!r}: the method has no {', '.join(unknown)}; it has {settings(knobs)}")
    merged = {**knobs, **changed}
    if settings(merged) != text:
        raise UserError(f"settings {text!r}: write it as {settings(merged)}")
    return merged


def _run(params: Params, experiment: str, name: str, method: Method, dataset: str) -> Run:
    sizes = params.sizes
    headline = experiment == "headline"
    return Run(
        experiment=experiment,
        method=name,
        settings=settings(method.knobs),
        dataset=dataset,
        decoder=method.decoder,
        knobs=tuple(method.knobs.items()),
        prompts=sizes.prompts if headline else sizes.sweep_prompts,
        output_tokens=sizes.output_tokens if headline else sizes.sweep_output_tokens,
        repeats=sizes.repeats if headline else 1,
    )


def expand(params: Params) -> dict[str, Run]:
    """Every generation run, by its folder: the headline, and the sweep with the plain decoding it is compared to."""
    runs = [
        _run(params, "headline", name, method, dataset)
        for name, method in params.methods.items()
        for dataset in params.datasets
    ]
    sweep = params.sweep
    swept = params.methods[sweep.method]
    for text in sweep.settings:
        method = Method(decoder=swept.decoder, **with_settings(swept.knobs, text))
        runs.append(_run(params, "sweep", sweep.method, method, sweep.dataset))
    plain = params.methods["autoregressive"]
    runs.append(_run(params, "sweep", "autoregressive", plain, sweep.dataset))
    return {run.folder: run for run in runs}


def timeline(params: Params) -> dict[str, Run]:
    """The instrumented passes, by folder: one prompt of the first data set."""
    runs = {}
    for name in params.timeline:
        method = params.methods[name]
        run = Run(
            experiment="timeline",
            method=name,
            settings=settings(method.knobs),
            dataset=params.datasets[0],
            decoder=method.decoder,
            knobs=tuple(method.knobs.items()),
            prompts=1,
            output_tokens=params.sizes.timeline_tokens,
            repeats=1,
        )
        runs[run.folder] = run
    return runs
