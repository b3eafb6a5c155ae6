"""transformers' own `generate`, watched from outside: commits from a criterion, forwards from a hook on the model.

The baselines run on the same model object and the same kernels as our decoders, with nothing switched on that is not
asked for. Where they sample, they draw by torch's generator: other texts than ours, from the same distribution.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from threading import RLock
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from dynatree.engine.language_model import LanguageModel
from dynatree.generation.ending import Ending
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Clock, OnCommit, Recorder, Round, Trace


class _Commits(StoppingCriteria):
    """The only criterion of `generate`, which asks it after each commit: turns these into rounds, and says when to end.

    The caller's criteria are asked through it, for each token of a commit, and `generate` would only ask at the end.
    """

    def __init__(self, recorder: Recorder, prompt_length: int, limit: int):
        self._recorder, self._limit = recorder, limit
        self._prompt_length = prompt_length
        self.fed: list[int] = []  # new tokens of each target forward

    def watch(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the target."""
        if self._recorder.clock.stopped:
            return
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.fed.append(ids.shape[1] - (0 if self.fed else self._prompt_length - 1))

    def __call__(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        # Some devices hear of the end a step late.
        if not self._recorder.finished:
            self._commit(ids[0, self._prompt_length + len(self._recorder.trace.output) :].tolist())
        return torch.tensor([self._recorder.finished], device=ids.device)

    def _commit(self, tokens: list[int]) -> None:
        if not self._recorder.trace.commits:
            self._recorder.first(tokens, accepted=len(tokens) - 1)
        else:
            # What it looks up beyond the last wanted token can never be emitted.
            drafted = min(self.fed[-1] - 1, self._limit - len(self._recorder.trace.output) - 1)
            self._recorder.round(Round(drafted, drafted, len(tokens) - 1, tokens))


# Torch's generator is the process's: who sets it has it alone.
_seeded = RLock()


class Assistant(NamedTuple):
    """A drafter for transformers' assisted generation, and generation options of its own."""

    model: LanguageModel
    options: Mapping[str, Any]


def generate(
    target: LanguageModel,
    prompt: Sequence[int],
    options: GenerationOptions,
    on_commit: OnCommit | None,
    clock: Clock | None,
    further: Mapping[str, Any] = MappingProxyType({}),
    assistant: Assistant | None = None,
    as_loaded: bool = False,
) -> Trace:
    """`target.model.generate` with `options` and `further` keys of transformers' GenerationConfig.

    It computes as `target` does; `as_loaded`: as the model does, in the type of its weights.
    The assistant's schedule adapts across calls, so its configuration is put back after each request.
    """
    target.check_prompt(prompt, options.max_new_tokens)
    # A configuration of our own: the model's may sample or penalise.
    config = GenerationConfig(
        **options.sampling_options,
        max_new_tokens=options.max_new_tokens,
        eos_token_id=sorted(options.eos_token_id) or None,
        pad_token_id=min(options.eos_token_id, default=0),
        **options.processors.generation_options,
        **further,
    )
    configured = [(target, deepcopy(config))]
    if assistant:
        configured.append((assistant.model, GenerationConfig(**assistant.options)))
    models = [model for model, _ in configured]
    ids = torch.tensor([prompt], device=target.device)
    with ExitStack() as stack:
        # In one order, or two generations of the same models could wait for each other.
        for model, own in sorted(configured, key=lambda pair: id(pair[0].model)):
            stack.enter_context(model.configured(own))
        forwards = [model.forwards for model in models]
        recorder = Recorder(Ending(prompt, options), on_commit, clock or Clock())
        commits = _Commits(recorder, len(prompt), options.max_new_tokens)
        stack.callback(target.model.register_forward_pre_hook(commits.watch, with_kwargs=True).remove)
        if (seed := options.torch_seed()) is not None:
            stack.enter_context(_seeded)
            stack.enter_context(torch.random.fork_rng([target.device] if target.device.type == "cuda" else []))
            torch.manual_seed(seed)
        for model in () if as_loaded else models:
            stack.enter_context(model.generating())
        target.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList(options.logits_processor),
            stopping_criteria=StoppingCriteriaList([commits]),
            assistant_model=assistant.model.model if assistant else None,
        )
        made = [model.forwards - before for model, before in zip(models, forwards, strict=True)]
    return recorder.close(made[0], made[1] if assistant else 0)
