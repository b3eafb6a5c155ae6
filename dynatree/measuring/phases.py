"""One instrumented pass over a prompt: the span of each phase of each round, and those of the models' forwards.

The forwards are watched from outside, so that no timed run carries a clock inside. Knows no table and no figure.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from dynatree.data.prompts import Prompt
from dynatree.decoding import Decoder
from dynatree.engine.checkpoint import Pair
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock
from dynatree.measuring import runs
from dynatree.measuring.clock import PacedClock, StepSampler, alone, synchronise

# Seconds since the request's start: [begin, end].
Span = list[float]


@contextmanager
def forwards(models: Iterable[LanguageModel | DraftModel], clock: Clock) -> Iterator[list[Span]]:
    """The span of each forward of `models` while the request's clock runs, with the head that gives its logits."""
    spans: list[Span] = []
    with ExitStack() as watched:
        for model in models:

            def begin(device: torch.device = model.device) -> None:
                if not clock.stopped:
                    synchronise(device)
                    spans.append([clock.now()] * 2)

            def end(_: object, device: torch.device = model.device) -> None:
                if not clock.stopped:
                    synchronise(device)
                    spans[-1][1] = clock.now()

            watched.enter_context(model.watched(begin, end))
        yield spans


def record(models: Pair, decoder: Decoder, prompt: Prompt, options: GenerationOptions) -> dict[str, Any]:
    """Output record of `prompt`, `spans` of the phases (round, name, begin, end), `forwards`, and references.

    `models`: the decoder's own; the target also gives the references.
    """
    with alone():
        runs.warm_up(decoder, [prompt.ids], options)
        clock = PacedClock(StepSampler(models.target), instrumented=True)
        with forwards([model for model in models if model is not None], clock) as spans:
            trace = decoder.decode(prompt.ids, options, clock=clock)
        clock.sample()
    made = {"prompt_id": prompt.prompt_id, **runs.output_record(prompt, trace)}
    return {**made, "spans": trace.spans, "forwards": spans, "references": clock.samples}
