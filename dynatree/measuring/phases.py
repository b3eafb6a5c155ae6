"""One instrumented pass over a prompt: the span of each phase of each round, and those of the models' forwards.

Hooks on the models see the forwards, so that no timed run carries a clock inside. Knows no table and no figure.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from dynatree.data.prompts import Prompt
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.trace import Clock
from dynatree.measuring import runs
from dynatree.measuring.clock import PacedClock, Reference, alone, synchronise

# Seconds since the request's start: [begin, end].
Span = list[float]


@contextmanager
def forwards(models: Iterable[LanguageModel], clock: Clock) -> Iterator[list[Span]]:
    """The span of each forward of `models` while the request's clock runs, with the head that gives its logits."""
    spans: list[Span] = []
    with ExitStack() as hooks:
        for model in models:

            def begin(*_: Any, model: LanguageModel = model) -> None:
                if not clock.stopped:
                    synchronise(model.device)
                    spans.append([clock.now()] * 2)

            def end(*_: Any, model: LanguageModel = model) -> None:
                if not clock.stopped:
                    synchronise(model.device)
                    spans[-1][1] = clock.now()

            base = model.model.base_model
            hooks.callback(base.register_forward_pre_hook(begin).remove)
            # Whichever comes last: drafting over a vocabulary of its own goes past the causal LM to a head of its own.
            for module in (base, *model.parts):
                hooks.callback(module.register_forward_hook(end).remove)
        yield spans


def record(models: dict[str, LanguageModel], decoder: Any, prompt: Prompt, max_new_tokens: int) -> dict[str, Any]:
    """Output record of `prompt`, `spans` of the phases (round, name, begin, end), `forwards`, and references.

    `models`: the decoder's own, by role; the `target` also gives the references.
    """
    with alone():
        runs.warm_up(decoder, [prompt.ids], max_new_tokens)
        reference = Reference(models["target"])
        clock = PacedClock(reference, instrumented=True)
        with forwards(models.values(), clock) as spans:
            trace = decoder.decode(prompt.ids, max_new_tokens, clock=clock)
        clock.sample()
    made = {"prompt_id": prompt.prompt_id, **runs.output_record(prompt, trace)}
    return {**made, "spans": trace.spans, "forwards": spans, "references": clock.samples}
