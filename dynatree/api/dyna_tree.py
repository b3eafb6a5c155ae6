"""DynaTree: a model and a method, ready to decode text, token ids, chats and lists of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from dynatree import decoding, plugins
from dynatree.api import calibrations, models
from dynatree.api.generation import Generation, generation
from dynatree.api.text import Pieces, Prompt, encode, is_one
from dynatree.config import explain
from dynatree.costs.calibration import COSTS, Calibration
from dynatree.engine import checkpoint
from dynatree.engine.machine import describe_machine
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions
from dynatree.generation.trace import Trace
from dynatree.measuring import calibrate
from dynatree.measuring.loading import calibration_beside
from dynatree.settings import PLUGGED
from dynatree.study import params, plugin_checks


class DynaTree:
    """Decodes with `model` by one of the methods of the packaged params.yaml: the output is that of greedy decoding.

    `model` and `drafter`: a loaded transformers model, a folder, or a hub name; without a drafter the method looks up
    in the text alone. `tokenizer`: of a loaded model; else the folder's or the hub's. `method`: "dynatree",
    "autoregressive", "linear", "fixed_tree", ...; `knobs` change its parameters (depth=4). `dtype`: "float32" and so
    on, of models that are loaded here. `calibration`: a folder that `dynatree calibrate` wrote; None: what
    `calibrate()` kept of these models on this machine, or the workflow measured beside the folders, if it was for them.
    Without any the method runs with its limits alone and says so.

    What changes in a model that is given: on a CPU in float32 its linear layers are packed for oneDNN (its own are kept
    beside them), it attends by torch's kernels, is in evaluation mode, and has a hook that counts its forwards.
    `close()`, or leaving `with`, puts all of that back, the very objects.

    Raises UserError for models that a tree cannot be verified with, a pair of different tokenizers, vocabularies or
    devices, an unknown method or parameter, and a method that needs a drafter where none is given.
    """

    def __init__(
        self,
        model: models.Given,
        tokenizer: PreTrainedTokenizerBase | None = None,
        drafter: models.Given | None = None,
        *,
        method: str = "dynatree",
        dtype: str | None = None,
        calibration: str | Path | Calibration | None = None,
        **knobs: Any,
    ):
        self._build(model, tokenizer, drafter, method, dtype, "cpu", calibration, MappingProxyType({}), knobs)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        drafter: models.Given | None = None,
        method: str = "dynatree",
        dtype: str | None = None,
        device: str | None = None,
        calibration: str | Path | Calibration | None = None,
        loading: Mapping[str, Any] | None = None,
        **knobs: Any,
    ) -> Self:
        """The same from a folder or a hub name, on `device` ("cpu" or "cuda").

        `loading`: further arguments of transformers' `from_pretrained`, such as `revision`, for names of a hub.
        """
        made = cls.__new__(cls)
        made._build(name, None, drafter, method, dtype, device or "cpu", calibration, loading or {}, knobs)
        return made

    def _build(
        self,
        model: models.Given,
        tokenizer: PreTrainedTokenizerBase | None,
        drafter: models.Given | None,
        method: str,
        dtype: str | None,
        device: str,
        calibration: str | Path | Calibration | None,
        loading: Mapping[str, Any],
        knobs: Mapping[str, Any],
    ) -> None:
        decoder, values = _method(method, knobs)
        needs = plugins.load("decoding", decoder).Decoder.needs(values)
        if needs.drafter == "required" and drafter is None:
            raise UserError(f"drafter: method {method} needs one; give a model, a folder or a hub name")
        drafter = None if needs.drafter == "unused" else drafter
        self.method, self._plugin, self._values = method, decoder, values
        # Before anything of a model that is given changes.
        given = {role: one for role, one in (("target", model), ("drafter", drafter)) if one is not None}
        self._calibrated = needs.calibration
        self._fingerprints = calibrations.fingerprints(given) if needs.calibration else {}
        self._target = models.target(model, tokenizer, dtype, device, loading)
        self._draft_model = None
        if drafter is not None:
            self._draft_model = models.drafter(drafter, self._target.tokenizer, dtype, device, loading)
            models.check_devices(self._target.device, self._draft_model.device)
        known = self._calibration(calibration, models.folders(given)) if needs.calibration else None
        self._decoder = decoding.build(self._target, self._draft_model, decoder, values, known)

    def _calibration(
        self, given: str | Path | Calibration | None, folders: Mapping[str, Path] | None
    ) -> Calibration | None:
        if isinstance(given, Calibration):
            return given
        home = Path(given) if given is not None else None
        if home is None and (kept := self._kept) is not None and (kept / COSTS).is_file():
            home = kept
        if home is None and folders:
            home = calibration_beside(folders)
        return None if home is None else Calibration.read(home, self._fingerprints, self._machine)

    @property
    def _machine(self) -> dict[str, Any]:
        return describe_machine(str(self._target.dtype).removeprefix("torch."), self._target.device.type)

    @property
    def _kept(self) -> Path | None:
        """The folder that `calibrate` keeps its result in; None for names of a hub, which tell no weights apart."""
        return calibrations.folder(self._fingerprints, self._machine) if self._fingerprints else None

    def calibrate(self, text: str | Sequence[str] | Sequence[Sequence[int]] | None = None) -> Path:
        """Measure in about a minute what this machine's forwards cost and how often the drafter is right; use it.

        It is kept in the user's cache folder, where the next process finds it; the folder is returned. `text`: what the
        target goes on from, texts or token ids; None: some sentences. Let nothing else run meanwhile; lines on standard
        error tell how far it is. Raises UserError for a method that makes no use of it, and names of a hub.
        """
        if not self._calibrated:
            raise UserError(f"calibrate: method {self.method} makes no use of it")
        if (kept := self._kept) is None:
            raise UserError("calibrate: a hub's name does not tell its weights apart; give a folder or a loaded model")
        texts = calibrations.OPENINGS if text is None else [text] if isinstance(text, str) else text
        prompts = [encode(one, self.tokenizer)[: calibrations.CONTEXTS[0]] for one in texts]
        pair = checkpoint.Pair(self._target, self._draft_model)
        sizes = (calibrations.OUTPUT_TOKENS, calibrations.CONTEXTS, calibrations.REPEATS)
        measured = calibrate.loaded(pair, self._fingerprints, prompts, *sizes, self._machine)
        measured.write(kept)
        self._decoder = decoding.build(self._target, self._draft_model, self._plugin, self._values, measured)
        return kept

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The target's."""
        return self._target.tokenizer

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new_tokens: int,
        **options: Any,
    ) -> Generation | list[Generation]:
        """What comes after `prompt`: a text, token ids, chat messages, or a list of these, decoded together.

        A list gives a list. `options`: those of `GenerationOptions` (eos_token_id, repetition_penalty,
        no_repeat_ngram_size, logits_processor, stopping_criteria); `eos_token_id` is the model's unless given, None for
        none. Raises UserError for an empty prompt, one that does not fit the context, and unknown options.
        """
        asked = self._asked(max_new_tokens, options)
        if is_one(prompt):
            ids = encode(prompt, self.tokenizer)  # type: ignore[arg-type]
            return self._generation(self._decoder.decode(ids, asked), ids)
        every = [encode(one, self.tokenizer) for one in prompt]  # type: ignore[arg-type]
        for ids in every:
            self._target.check_prompt(ids, max_new_tokens)
        together = isinstance(self._decoder, decoding.BatchDecoder)
        traces = (
            decoding.decode_together(self._decoder, every, asked)
            if together
            else [self._decoder.decode(ids, asked) for ids in every]
        )
        return [self._generation(trace, ids) for trace, ids in zip(traces, every, strict=True)]

    def stream(self, prompt: Prompt, max_new_tokens: int, streamer: Any = None, **options: Any) -> Iterator[str]:
        """The pieces of text that come after `prompt`, as they are committed. (A transformers method gives one piece.)

        `streamer`: one of transformers', which is told of the prompt and of each commit as by `generate`.
        """
        ids, asked = encode(prompt, self.tokenizer), self._asked(max_new_tokens, options)
        self._target.check_prompt(ids, max_new_tokens)
        return self._pieces(ids, asked, streamer)

    def _pieces(self, ids: list[int], asked: GenerationOptions, streamer: Any) -> Iterator[str]:
        pieces, told = Pieces(self.tokenizer), 0
        if streamer is not None:
            streamer.put(torch.tensor([ids]))
        decoder = self._decoder
        traces: Iterable[Trace] = (
            decoder.commits(ids, asked)
            if isinstance(decoder, decoding.StreamingDecoder)
            else (decoder.decode(ids, asked),)
        )
        for trace in traces:
            fresh, told = trace.output[told:], len(trace.output)
            if streamer is not None:
                streamer.put(torch.tensor(fresh))
            if piece := "".join(pieces.add(token) for token in fresh):
                yield piece
        if streamer is not None:
            streamer.end()
        if rest := pieces.rest():
            yield rest

    def __call__(self, model: Any, input_ids: Any, **prepared: Any) -> Any:
        """For `model.generate(**inputs, custom_generate=tree)` (see api/custom_generate.py)."""
        from dynatree.api.custom_generate import generate

        return generate(self._target, self._decoder, model, input_ids, **prepared)

    def close(self) -> None:
        """Put models that were given back as they were; this object is of no use afterwards."""
        self._target.release()
        if self._draft_model is not None:
            self._draft_model.language_model.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        drafter = f", drafter {self._draft_model.name}" if self._draft_model else ""
        return f"DynaTree({self._target.name}{drafter}, method {self.method})"

    def _asked(self, max_new_tokens: int, options: Mapping[str, Any]) -> GenerationOptions:
        given = {"eos_token_id": self._target.eos_ids, **options, "max_new_tokens": max_new_tokens}
        try:
            return GenerationOptions(**given)
        except ValueError as error:
            known = ", ".join(GenerationOptions.model_fields)
            raise UserError(f"generate: {explain(error)}; options are {known}") from error

    def _generation(self, trace: Trace, ids: Sequence[int]) -> Generation:
        return generation(trace, len(ids), self.method, self._decode)

    @cached_property
    def _decode(self) -> Any:
        tokenizer = self.tokenizer
        return None if tokenizer is None else lambda ids: str(tokenizer.decode(list(ids)))


def _method(name: str, knobs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Decoder and parameters of a method of the packaged params.yaml. Raises UserError."""
    methods = params.packaged().methods
    if name not in methods:
        raise UserError(f"method: no {name!r}; choose one of {', '.join(methods)}")
    own = methods[name].knobs
    settable = [knob for knob in own if knob not in PLUGGED]
    for knob in knobs:
        if knob not in settable:
            raise UserError(f"{knob}: method {name} has no such parameter; it has {', '.join(settable) or 'none'}")
    values = own | dict(knobs)
    plugin_checks.check_method(f"method {name}", methods[name].decoder, values)
    return methods[name].decoder, values
