"""transformers' own `generate`, watched from outside: commits from a streamer, forwards from a hook on the model.

The baselines run on the same model object as our decoders, with greedy decoding and nothing else switched on.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from dynatree.engine.language_model import LanguageModel
from dynatree.generation.trace import Clock, OnCommit, Recorder, Trace


class _Commits(BaseStreamer):
    """Turns what `generate` streams into rounds: the prompt comes first, then one call a commit."""

    def __init__(self, recorder: Recorder, prompt_length: int, limit: int):
        self._recorder, self._limit = recorder, limit
        self._prompt_length = prompt_length
        self._prompt_seen = False
        self.fed: list[int] = []  # new tokens of each target forward

    def watch(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the target."""
        if self._recorder.clock.stopped:
            return
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.fed.append(ids.shape[1] - (0 if self.fed else self._prompt_length - 1))

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        tokens = value.flatten().tolist()
        if not self._recorder.trace.commits:
            self._recorder.first(tokens, accepted=len(tokens) - 1)
        else:
            # What it looks up beyond the last wanted token can never be emitted.
            drafted = min(self.fed[-1] - 1, self._limit - len(self._recorder.trace.output) - 1)
            self._recorder.round(tokens, accepted=len(tokens) - 1, drafted=drafted, depth=drafted)

    def end(self) -> None:
        pass


def generate(
    target: LanguageModel,
    drafter: LanguageModel | None,
    prompt: list[int],
    max_new_tokens: int,
    eos_ids: frozenset[int],
    on_commit: OnCommit | None,
    clock: Clock | None,
    drafter_options: dict[str, Any] | None = None,
    **options: Any,
) -> Trace:
    """Greedy `target.model.generate` with generation `options`; `drafter_options` go to the assistant's own config.

    The assistant's schedule adapts across calls, so its configuration is put back after each request.
    """
    target.check_prompt(prompt, max_new_tokens)
    forwards = target.forwards
    draft_forwards = drafter.forwards if drafter else 0
    recorder = Recorder(eos_ids, on_commit, clock)
    commits = _Commits(recorder, len(prompt), max_new_tokens)
    ids = torch.tensor([prompt], device=target.device)
    # A configuration of our own: the model's may sample or penalise.
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=min(eos_ids, default=0),
        **options,
    )
    kept = (target.model.generation_config, drafter.model.generation_config if drafter else None)
    hook = target.model.register_forward_pre_hook(commits.watch, with_kwargs=True)
    try:
        target.model.generation_config = deepcopy(config)
        if drafter:
            drafter.model.generation_config = GenerationConfig(**(drafter_options or {}))
        target.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=commits,
            assistant_model=drafter.model if drafter else None,
        )
    finally:
        hook.remove()
        target.model.generation_config = kept[0]
        if drafter:
            drafter.model.generation_config = kept[1]
    return recorder.close(target.forwards - forwards, (drafter.forwards if drafter else 0) - draft_forwards)
