"""DynaTree: a model and a method, ready to decode text, token ids, chats and lists of them."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, overload

import torch
from transformers import PreTrainedTokenizerBase

from dynatree import decoding
from dynatree.api import calibrations, methods, models, streaming
from dynatree.api.chat import Chat
from dynatree.api.generation import Generation, generation
from dynatree.api.methods import Method
from dynatree.api.processors import of_nodes
from dynatree.api.streaming import Commit, Stream
from dynatree.api.text import Pieces, Prompt, encode, is_one
from dynatree.config import explain
from dynatree.costs.calibration import Calibration
from dynatree.engine.machine import describe_machine
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions
from dynatree.generation.prefix_cache import PrefixCache
from dynatree.generation.trace import Trace
from dynatree.measuring import calibrate, progress, runs


class DynaTree:
    """Decodes with `model` by one of the methods of the packaged params.yaml: the output is autoregressive decoding's.

    `model` and `drafter`: a loaded transformers model, a folder, or a hub name; without a drafter the method looks up
    in the text alone. `tokenizer`: of a loaded model; else the folder's or the hub's. `method`: "dynatree",
    "autoregressive", "linear", "fixed_tree", ...; `knobs` change its parameters (depth=4). `dtype`: "float32" and so
    on, of models that are loaded here. `calibration`: a folder that `dynatree calibrate` wrote; None: what
    `calibrate()` kept of these models on this machine, or the workflow measured beside the folders, if it was for them.
    Without any the method runs with its limits alone and says so.

    What changes in a model that is given: it is in evaluation mode and has a hook that counts its forwards. On a CPU
    Llama, Mistral, Qwen2, Qwen3 and GPT-NeoX in float32, float16, int8 or int4 are computed by graphs of their own
    beside it; of others in float32 the linear layers are packed for oneDNN (its own are kept beside them), and what
    torch computes attends by torch's kernels. `close()`, or leaving `with`, puts all of that back, the very objects.

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
        self._build(methods.packaged(method, knobs), model, tokenizer, drafter, dtype, "cpu", calibration)

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
        return cls.by(
            methods.packaged(method, knobs), name, drafter, dtype, device or "cpu", calibration, loading or {}
        )

    @classmethod
    def by(
        cls,
        method: Method,
        model: models.Given,
        drafter: models.Given | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        calibration: str | Path | Calibration | None = None,
        loading: Mapping[str, Any] = MappingProxyType({}),
    ) -> Self:
        """The same by a `Method` that no packaged params.yaml has, such as one of your own file."""
        if not isinstance(method, Method):
            raise UserError(
                f"method: got {method!r}; `by` takes a Method, a packaged one is named in DynaTree(..., method=NAME)"
            )
        made = cls.__new__(cls)
        made._build(method, model, None, drafter, dtype, device, calibration, loading)
        return made

    def _build(
        self,
        method: Method,
        model: models.Given,
        tokenizer: PreTrainedTokenizerBase | None,
        drafter: models.Given | None,
        dtype: str | None,
        device: str,
        calibration: str | Path | Calibration | None,
        loading: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        needs = method.needs
        if needs.drafter == "required" and drafter is None:
            raise UserError(f"drafter: method {method.name} needs one; give a model, a folder or a hub name")
        drafter = None if needs.drafter == "unused" else drafter
        self._method = method
        self._loaded = models.load(model, tokenizer, drafter, dtype, device, loading)
        self._target = self._loaded.pair.target
        self._closed = False
        try:
            known = calibrations.find(calibration, self._loaded, self._machine) if needs.calibration else None
            self._made = self._built(known)
        except BaseException:
            # Nobody gets this object, and could close it.
            self.close()
            raise

    def _built(self, calibration: Calibration | None) -> decoding.Decoder:
        method = self._method
        return decoding.build(*self._loaded.pair, method.decoder, method.knobs, calibration)

    @property
    def _decoder(self) -> decoding.Decoder:
        self._check_open()
        return self._made

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("DynaTree: it is closed; make another")

    @property
    def _machine(self) -> dict[str, Any]:
        return describe_machine(self._target.format, self._target.device.type)

    def calibrate(
        self, text: str | Sequence[str] | Sequence[Sequence[int]] | None = None, *, anew: bool = False
    ) -> Path:
        """Measure in about a minute what this machine's forwards cost and how often the drafter is right; use it.

        It is kept in the user's cache folder, where the next process finds it; the folder is returned. What is kept is
        used, and not measured again, unless with `anew` or a `text`: what the target goes on from, texts or token ids;
        None: some sentences. Let nothing else run meanwhile; a bar on standard error shows how far it is. Raises
        UserError for a method that makes no use of it.
        """
        self._check_open()
        if not self._method.needs.calibration:
            raise UserError(f"calibrate: method {self.method} makes no use of it")
        machine = self._machine
        kept = calibrations.folder(self._loaded.fingerprints, machine)
        found = calibrations.kept(self._loaded, machine) if text is None and not anew else None
        if found is not None:
            self._made = self._built(found)
            return kept
        texts = calibrations.OPENINGS if text is None else [text] if isinstance(text, str) else text
        prompts = [encode(one, self.tokenizer)[: calibrations.CONTEXTS[0]] for one in texts]
        if not prompts or not all(prompts):
            raise UserError(
                f"text: {len(prompts)} texts, of which {prompts.count([])} are empty; give some to go on from, or None"
            )
        sizes = (calibrations.OUTPUT_TOKENS, calibrations.CONTEXTS, calibrations.REPEATS)
        pair, fingerprints, _ = self._loaded
        with progress.bar("calibrate", calibrate.steps(pair, prompts, sizes[1])) as tell:
            measured = calibrate.loaded(pair, fingerprints, prompts, *sizes, machine, tell)
        measured.write(kept)
        self._made = self._built(measured)
        return kept

    @property
    def method(self) -> str:
        """The name of the method that it decodes by."""
        return self._method.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The target's."""
        return self._target.tokenizer

    @property
    def format(self) -> str:
        """In which the target computes: "float32", ..., "int8", "int4"."""
        return self._target.format

    @property
    def exact(self) -> str:
        """ "bitwise": a tree's logits are to the last bit those of autoregressive decoding; else "within rounding"."""
        return self._target.exact

    @property
    def context_limit(self) -> int | None:
        """Most tokens that the target was made for, prompt and output; None if it does not say."""
        return self._target.context_limit

    def check_prompt(self, prompt: Prompt, max_new_tokens: int) -> list[int]:
        """The token ids of `prompt`. Raises UserError: it is empty, or does not fit the context with so many more.

        `max_new_tokens` is checked as `generate` does.
        """
        ids = encode(prompt, self.tokenizer)
        self._target.check_prompt(ids, self._asked(max_new_tokens, {}).max_new_tokens)
        return ids

    @overload
    def generate(
        self, prompt: Prompt, max_new_tokens: int, *, skip_special_tokens: bool = ..., **options: Any
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], max_new_tokens: int, *, skip_special_tokens: bool = ..., **options: Any
    ) -> list[Generation]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new_tokens: int,
        *,
        skip_special_tokens: bool = False,
        **options: Any,
    ) -> Generation | list[Generation]:
        """What comes after `prompt`: a text, token ids, chat messages, or a list of these, decoded together.

        A list gives a list. `options`: those of `GenerationOptions` (eos_token_id, repetition_penalty,
        no_repeat_ngram_size, logits_processor, stopping_criteria, do_sample, temperature, top_k, top_p, min_p, seed,
        request_key); `eos_token_id` is the model's unless given, None for none. With `do_sample` the same `seed` gives
        the same text by any method of ours; `num_return_sequences`: so many of each prompt, a list, the i-th drawn with
        the request key i. `skip_special_tokens`: of the texts, not of the tokens. Raises UserError for an empty prompt,
        one that does not fit the context, and unknown options.
        """
        copies = _copies(options)
        single = is_one(prompt)
        prompts: Sequence[Prompt] = [prompt] if single else prompt  # type: ignore[list-item, assignment]
        every = [ids for one in prompts for ids in [self.check_prompt(one, max_new_tokens)] * (copies or 1)]
        options = {name: value for name, value in options.items() if name != "num_return_sequences"}
        asked = self._asked(max_new_tokens, options, len(prompts))
        if copies:
            asked = asked.keyed([*range(copies)] * len(prompts))
        if isinstance(self._decoder, decoding.BatchDecoder):
            traces = decoding.decode_together(self._decoder, every, asked)
        else:
            keys = [asked.key(place) for place in range(len(every))]
            traces = [self._decoder.decode(ids, asked.keyed([key])) for ids, key in zip(every, keys, strict=True)]
        found = [self._generation(*both, skip_special_tokens) for both in zip(traces, every, strict=True)]
        return found[0] if single and not copies else found

    def warm_up(self, prompt: Prompt, max_new_tokens: int, **options: Any) -> None:
        """The beginning of that output, thrown away: what is new to a process takes longer the first time."""
        asked = self._asked(max_new_tokens, {**options, "eos_token_id": None})
        runs.warm_up(self._decoder, [self.check_prompt(prompt, max_new_tokens)], asked)

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        streamer: Any = None,
        *,
        kept: PrefixCache | None = None,
        skip_special_tokens: bool = False,
        **options: Any,
    ) -> Stream:
        """The pieces of text that come after `prompt`, as they are committed; `.generation` when they have ended.

        `streamer`: one of transformers', which is told of the prompt and of each commit as by `generate`. `kept`: keys
        and values of the last stream that it was given to; what both prompts begin with is not forwarded again.
        """
        asked = self._asked(max_new_tokens, options)
        ids = self.check_prompt(prompt, max_new_tokens)
        if streamer is not None:
            streamer.put(torch.tensor([ids]))
        return Stream(
            self._while_open(streaming.commits(self._decoder, ids, asked, kept)),
            Pieces(self.tokenizer, skip_special_tokens),
            lambda trace: self._generation(trace, ids, skip_special_tokens),
            streamer,
        )

    def chat(self, system: str | None = None) -> Chat:
        """A conversation, `system` its first message: `for piece in chat.say("Hello"): print(piece, end="")`.

        Raises UserError for a tokenizer without a chat template.
        """
        return Chat(self, system)

    def __call__(self, model: Any, input_ids: Any, seed: int | None = None, **prepared: Any) -> Any:
        """For `model.generate(**inputs, custom_generate=tree)`, which calls it with what it has prepared.

        `seed`: where it samples; None: one that torch's generator gives, so that `torch.manual_seed` decides.
        """
        from dynatree.api.custom_generate import generate

        return generate(self._target, self._decoder, model, input_ids, seed=seed, **prepared)

    def close(self) -> None:
        """Put models that were given back as they were; this object decodes nothing afterwards.

        A stream that has not ended raises UserError when it is asked for more.
        """
        self._closed = True
        self._target.release()
        if (drafter := self._loaded.pair.drafter) is not None:
            drafter.language_model.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        pair = self._loaded.pair
        drafter = f", drafter {pair.drafter.name}" if pair.drafter else ""
        return f"DynaTree({self._target.name}{drafter}, method {self.method})"

    def _while_open(self, commits: Generator[Commit]) -> Generator[Commit]:
        """`commits` as long as this is open: a model that was put back is computed in other ways."""
        with closing(commits):
            self._check_open()
            for commit in commits:
                yield commit
                self._check_open()

    def _asked(self, max_new_tokens: int, options: Mapping[str, Any], prompts: int = 1) -> GenerationOptions:
        given = {"eos_token_id": self._target.eos_ids, **options, "max_new_tokens": max_new_tokens}
        try:
            asked = GenerationOptions(**given)
        except ValueError as error:
            known = ", ".join(GenerationOptions.model_fields)
            raise UserError(f"generate: {explain(error)}; options are {known}") from error
        if isinstance(asked.request_key, tuple) and len(asked.request_key) != prompts:
            raise UserError(f"request_key: {len(asked.request_key)} keys for {prompts} prompts; give one each, or one")
        # transformers' own ways ask once a step.
        if not asked.logits_processor or not isinstance(self._decoder, decoding.BatchDecoder):
            return asked
        return asked.model_copy(update={"logits_processor": tuple(of_nodes(asked.logits_processor, prompts))})

    def _generation(self, trace: Trace, ids: Sequence[int], skip_special_tokens: bool = False) -> Generation:
        tokenizer = self.tokenizer
        decode = None if tokenizer is None else lambda ids: str(tokenizer.decode(list(ids)))
        text = (
            None if tokenizer is None else str(tokenizer.decode(trace.output, skip_special_tokens=skip_special_tokens))
        )
        return generation(trace, len(ids), self.method, text, decode)


def _copies(options: Mapping[str, Any]) -> int | None:
    """`num_return_sequences`, if it is among `options`. Raises UserError for what it cannot be."""
    count = options.get("num_return_sequences")
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"num_return_sequences: {count!r}; give a whole number, at least 1")
    if count > 1 and (not options.get("do_sample") or options.get("temperature") == 0):
        raise UserError(f"num_return_sequences: {count} greedy outputs would be equal; add do_sample=True")
    if options.get("request_key") is not None:
        raise UserError("request_key: with num_return_sequences the i-th output of a prompt has the key i")
    return count
