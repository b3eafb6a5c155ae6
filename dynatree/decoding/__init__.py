"""Decoders: a prompt in, a Trace out.

A decoder is one file with a class `Decoder` of (target, drafter, calibration, **knobs), a `Decoder` as below. Class or
static methods:

    check(knobs)           raise ValueError (pydantic's) for knobs it does not take, before any loading
    needs(knobs) -> Needs  what must or may be given besides the target
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch

from dynatree import plugins
from dynatree.config import Knobs
from dynatree.costs.calibration import Calibration
from dynatree.engine.backend import NO_STATES, Feed, retain
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError, readable
from dynatree.generation.options import GenerationOptions
from dynatree.generation.prefix_cache import PrefixCache
from dynatree.generation.request import Request
from dynatree.generation.trace import Clock, OnCommit, Trace


class Needs(NamedTuple):
    """`drafter`: "unused", "optional" or "required"; `calibration`: whether one is made use of.

    `reads`: whether the drafter may be one that reads the target's states.
    """

    drafter: str = "unused"
    calibration: bool = False
    reads: bool = False


class Decoder(Protocol):
    """What decodes a prompt."""

    @property
    def shared_noise(self) -> bool:
        """Whether a sampled output is autoregressive sampling's by generation/sampling.py; else it is another text."""

    @property
    def audited(self) -> bool:
        """Whether its forwards are the target's, so that its outputs can be judged by them."""

    def decode(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
    ) -> Trace:
        """What came after `prompt`. Raises UserError for a prompt that does not fit.

        `on_commit` is told the tokens of each commit, and how many of them were drafted.
        """


@runtime_checkable
class BatchDecoder(Decoder, Protocol):
    """What decodes several prompts together, too."""

    def decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        clock: Clock | None = None,
        paddings: Sequence[Sequence[int]] | None = None,
    ) -> list[Trace]:
        """Of each prompt the output that `decode` gives for it alone; each forward is over all that are not finished.

        Trees and rounds differ where the policy weighs what is decoded besides. `paddings`: of each prompt the tokens
        that logits processors and stopping criteria see before it, as those of transformers do in a padded batch.
        Raises UserError for a prompt that does not fit.
        """


@runtime_checkable
class StreamingDecoder(Decoder, Protocol):
    """What shows a trace while it grows, too."""

    def commits(
        self, prompt: Sequence[int], options: GenerationOptions, kept: PrefixCache | None = None
    ) -> Iterator[Trace]:
        """The trace of `prompt` after each commit, complete after the last.

        `kept`: keys and values that the last generation left there are used as far as the texts are alike, and those of
        this one are left there, also where it is ended between two commits.
        """


class NoKnobs(Knobs):
    """For a decoder without knobs: refuses every key."""


class TargetAlone:
    """Base of a decoder that makes use of the target alone, with knobs of the class `Settings`."""

    Settings: ClassVar[type[Knobs]] = NoKnobs
    audited: bool = True

    @classmethod
    def check(cls, knobs: Mapping[str, Any]) -> None:
        cls.Settings(**knobs)

    @staticmethod
    def needs(knobs: Mapping[str, Any]) -> Needs:
        return Needs()

    def __init__(
        self,
        target: LanguageModel,
        drafter: DraftModel | None = None,
        calibration: Calibration | None = None,
        **knobs: Any,
    ):
        self._knobs: Any = self.Settings(**knobs)
        self._target = target


class RoundDecoder(ABC):
    """Base of a decoder that works in rounds over several requests, of which one may be all: prefill and retirement."""

    audited: ClassVar[bool] = True
    _target: LanguageModel
    # Layers of it whose states the drafter and its table read.
    _reads: tuple[int, ...] = ()

    @property
    def shared_noise(self) -> bool:
        """See `Decoder`."""
        return True

    def _start(self, requests: Sequence[Request]) -> None:  # noqa: B027
        """The prefill of `requests` is done, their first round follows."""

    @abstractmethod
    def _round(self, active: Sequence[Request], clock: Clock) -> None:
        """One target forward over all of `active`, and a commit of each."""

    def _retain(self, active: Sequence[Request]) -> None:  # noqa: B027
        """The requests that go on; others are finished."""

    def decode(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
    ) -> Trace:
        """See `Decoder`."""
        with self._target.threads():
            (request,) = _last(self._rounds([prompt], options, on_commit, clock or Clock(), [()]))
        return request.recorder.trace

    def decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        clock: Clock | None = None,
        paddings: Sequence[Sequence[int]] | None = None,
    ) -> list[Trace]:
        """See `BatchDecoder`."""
        with self._target.threads():
            requests = _last(self._rounds(prompts, options, None, clock or Clock(), paddings or [()] * len(prompts)))
        return [request.recorder.trace for request in requests]

    def commits(
        self, prompt: Sequence[int], options: GenerationOptions, kept: PrefixCache | None = None
    ) -> Iterator[Trace]:
        """See `StreamingDecoder`. Raises UserError as `decode` does."""
        kept = kept or PrefixCache()
        rounds = self._rounds([prompt], options, None, Clock(), [()], kept)
        while True:
            try:
                (request,) = next(rounds)
            except StopIteration:
                return
            except BaseException:
                kept.last = None
                raise
            kept.last = request
            yield request.recorder.trace
            if kept.last is not request:
                raise UserError("stream: a later one has taken its keys and values; end one before the next begins")

    # Trees are many small tensors: without autograd's books each operation on them takes a tenth less.
    @torch.inference_mode()
    def _rounds(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_commit: OnCommit | None,
        clock: Clock,
        paddings: Sequence[Sequence[int]],
        kept: PrefixCache | None = None,
    ) -> Iterator[list[Request]]:
        """The requests of all `prompts` after the prefill and after each round; `kept`: for one prompt alone."""
        target = self._target
        # Not while the reader has a piece, who may compute with torch, too.
        with target.threads():
            for prompt in prompts:
                target.check_prompt(prompt, options.max_new_tokens)
            follows, begun = (kept.last, kept.begin(prompts[0], target)) if kept else (None, None)
            if begun is not None:
                target.begin(1)
            caches = target.new_caches(len(prompts)) if begun is None else [begun]
            requests = [
                Request(prompt, options, cache, on_commit, clock, padding, follows, place)
                for place, (prompt, cache, padding) in enumerate(zip(prompts, caches, paddings, strict=True))
            ]
            for request in requests:
                with clock.phase("prefill"):
                    token = self._prefill(request)
                request.prefilled(token)
            self._start(requests)
            for request in requests:
                # Else every request of a conversation would hold those before it, and those of its whole prompt.
                request.follows, request.states = None, NO_STATES
            active = self._retire(requests, 0)
        yield requests
        forwards = 0
        while active:
            with target.threads():
                # Between two rounds others may have forwards of their own.
                before = target.forwards
                self._round(active, clock)
                forwards += target.forwards - before
                active = self._retire(active, forwards)
            yield requests

    def _prefill(self, request: Request) -> int:
        """The token that follows the prompt of `request`, whose states it gets where the target is read."""
        # One by one: a prompt fills a forward by itself, padding would only add to it.
        before = self._target.forwards
        feed = Feed(request.text[request.reused :], request.cache, last=1)
        ((logits, request.states),) = self._target.forward_batch([feed], reads=self._reads)
        token = request.next_token(logits)
        request.prefill_forwards = self._target.forwards - before
        return token

    def _retire(self, requests: Sequence[Request], forwards: int) -> Sequence[Request]:
        """Those that are not finished. The records of the others are closed: they took part in all `forwards`.

        Finished rows are taken out of the caches: masked instead they would cost as much as before until the last ends.
        """
        active = [request for request in requests if not request.finished]
        for request in requests:
            if request.finished:
                request.recorder.close(request.prefill_forwards + forwards, request.draft_forwards)
        if active and len(active) < len(requests):
            retain([request.cache for request in active])
            self._retain(active)
        return active


def may_lend(active: Sequence[Request]) -> bool:
    """Whether logits of a forward are read before the next one: a processor of the caller's may decode by the model."""
    return not any(request.processors.further for request in active)


def _last(rounds: Iterator[list[Request]]) -> list[Request]:
    """What the last of `rounds` gives."""
    requests: list[Request] = []
    for requests in rounds:  # noqa: B007
        pass
    return requests


def build(
    target: LanguageModel,
    drafter: DraftModel | None,
    decoder: str,
    knobs: dict[str, Any],
    calibration: Calibration | None = None,
) -> Decoder:
    """The decoder plug-in `decoder` on these models, with the calibration that was measured for them.

    Raises UserError for knobs that it does not take, and where it needs a drafter and there is none.
    """
    plugin = plugins.load("decoding", decoder).Decoder
    with readable(f"the parameters of decoder {decoder}"):
        plugin.check(knobs)
    if drafter is None and plugin.needs(knobs).drafter == "required":
        raise UserError(f"decoder {decoder} with these parameters needs a drafter, and none is given: {knobs}")
    built: Decoder = plugin(target, drafter, calibration, **knobs)
    return built


def check_batch(decoder: str, batch: int) -> None:
    """Raise UserError unless the decoder plug-in `decoder` can decode `batch` prompts together."""
    every = {name: plugins.load("decoding", name).Decoder for name in plugins.names("decoding")}
    able = [name for name, plugin in every.items() if hasattr(plugin, "decode_batch")]
    if batch > 1 and decoder not in able:
        raise UserError(f"batch: {batch}; {decoder} decodes one prompt at a time, batches are for {', '.join(able)}")


def comparable(decoder: Decoder, options: GenerationOptions) -> bool:
    """Whether its output is to be that of autoregressive decoding by the target, token for token."""
    return decoder.audited and (decoder.shared_noise or not options.sampled)


def decode_together(
    decoder: Decoder, prompts: Sequence[Sequence[int]], options: GenerationOptions, clock: Clock | None = None
) -> list[Trace]:
    """The traces of `prompts`; several are decoded together. Raises UserError where `decoder` cannot."""
    if len(prompts) == 1:
        return [decoder.decode(prompts[0], options, clock=clock)]
    if not isinstance(decoder, BatchDecoder):
        check_batch(type(decoder).__module__.rpartition(".")[2], len(prompts))
        raise TypeError(f"{type(decoder).__name__} is a plug-in for batches, and has no decode_batch")
    return decoder.decode_batch(prompts, options, clock)
