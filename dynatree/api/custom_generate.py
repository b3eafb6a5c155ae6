"""transformers' `generate` with our decoders: `model.generate(**inputs, custom_generate=tree)`.

It hands over prepared logits processors and stopping criteria, and takes back what it always gives. (A `streamer` and
an `assistant_model` never reach a custom function in transformers 5.24: `DynaTree.stream` takes a streamer.)
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    MaxLengthCriteria,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import GenerateDecoderOnlyOutput

from dynatree.api.processors import of_nodes
from dynatree.config import checked
from dynatree.decoding import BatchDecoder, Decoder
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions

# Keys of transformers' configuration with the values that they may have here.
_HONOURED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1, None),
    "output_scores": (False, None),
    "output_logits": (False, None),
    "output_attentions": (False, None),
    "output_hidden_states": (False, None),
    # Ways to decode of their own, which transformers leaves to who decodes.
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
}


# Those of sampling in the order that `generate` appends them in. Behind any other, all stay processors as they are.
_WARPERS: tuple[tuple[str, type, Callable[[Any], Any]], ...] = (
    ("temperature", TemperatureLogitsWarper, lambda warper: float(warper.temperature)),
    ("top_k", TopKLogitsWarper, lambda warper: int(warper.top_k)),
    # transformers' 0 leaves the likeliest token.
    ("top_p", TopPLogitsWarper, lambda warper: max(float(warper.top_p), 1e-12)),
    ("min_p", MinPLogitsWarper, lambda warper: float(warper.min_p)),
)

# What `generate` gives besides; anything else is an input of the model's own, and would be left out of each forward.
_PREPARED = ("attention_mask", "position_ids", "cache", "use_cache", "logits_to_keep", "inputs_embeds")

# What `GenerationOptions` says by names of their own.
_OURS = (MaxLengthCriteria, EosTokenCriteria)


def generate(
    target: LanguageModel,
    decoder: Decoder,
    model: Any,
    input_ids: Tensor,
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Sequence[Any] = (),
    generation_config: GenerationConfig | None = None,
    seed: int | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """`input_ids` [b, n] with what comes after them [b, n + m], padded on the right; prompts may be padded on the left.

    Where it samples, it does so by `seed`, and of several sequences a prompt the i-th has the request key i; None: by
    one that torch's generator gives, and each row has its place as key. Raises UserError for what cannot be honoured:
    another model, inputs of the model besides the text, beams, contrastive search, scores or hidden states to return,
    embeddings in place of ids, a filled cache, padding on the right, positions that are not the prompt's own.
    """
    assert generation_config is not None, "transformers prepares one"
    _refuse(target, model, input_ids, generation_config, model_kwargs)
    mask = model_kwargs.get("attention_mask")
    seen = torch.ones_like(input_ids) if mask is None else mask.long()
    if bool((seen.diff(dim=1) < 0).any()) or not bool(seen[:, -1].all()):
        raise UserError("attention_mask: prompts are padded on the right; pad them on the left")
    _refuse_positions(model_kwargs.get("position_ids"), seen)
    rows, shown = input_ids.cpu(), seen.cpu().bool()
    prompts = [row[kept].tolist() for row, kept in zip(rows, shown, strict=True)]
    paddings = [row[~kept].tolist() for row, kept in zip(rows, shown, strict=True)]
    padded = [len(padding) for padding in paddings]
    penalty, size, further = _fast(logits_processor, padded)
    further = of_nodes([_with_one_padding(processor, padded) for processor in further], len(prompts))
    further, sampling = _sampling(further, generation_config, seed, len(prompts))
    ends = _ends(stopping_criteria, generation_config)
    asked = {
        "max_new_tokens": _longest(stopping_criteria, generation_config) - input_ids.shape[1],
        "eos_token_id": ends,
        "repetition_penalty": penalty,
        "no_repeat_ngram_size": size,
        "logits_processor": tuple(further),
        "stopping_criteria": tuple(c for c in stopping_criteria if not isinstance(c, _OURS)),
        **sampling,
    }
    options = checked("generate", lambda given: GenerationOptions(**given), asked)
    outputs = _decoded(decoder, prompts, paddings, options)
    longest = max(map(len, outputs))
    short = [row for row, output in enumerate(outputs) if len(output) < longest]
    if short and not options.eos_token_id:
        # Without an end token `generate` goes on with every row until a criterion has stopped the last.
        on = options.model_copy(update={"max_new_tokens": longest, "stopping_criteria": ()})
        on = on.keyed([options.key(row) for row in short])
        further_on = _decoded(decoder, [prompts[row] for row in short], [paddings[row] for row in short], on)
        outputs = [dict(zip(short, further_on, strict=True)).get(row, output) for row, output in enumerate(outputs)]
    # As `generate` pads: where nothing is said, with the first end token. Without one no row is shorter.
    padding = generation_config.pad_token_id
    if padding is None:
        padding = ends[0] if isinstance(ends, list) else ends or 0
    outputs = [output + [padding] * (longest - len(output)) for output in outputs]
    sequences = torch.cat([rows, torch.tensor(outputs)], dim=1).to(input_ids.device)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
    return sequences


def _longest(criteria: Sequence[Any], config: GenerationConfig) -> int:
    """Tokens of prompt and output at most: a criterion of the caller's own has taken the place of `generate`'s."""
    return min((int(c.max_length) for c in criteria if isinstance(c, MaxLengthCriteria)), default=config.max_length)


def _ends(criteria: Sequence[Any], config: GenerationConfig) -> Any:
    """The end tokens, likewise."""
    found = [c.eos_token_id for c in criteria if isinstance(c, EosTokenCriteria)]
    return [int(token) for ids in found for token in torch.as_tensor(ids).flatten()] if found else config.eos_token_id


def _with_one_padding(processor: Any, padded: list[int]) -> Any:
    """The processor for any number of rows: `generate` tells it the tokens before each prompt that it passes over,
    `padded`. Raises UserError where these differ."""
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        if len({*padded}) > 1:
            raise UserError("repetition_penalty behind another processor: give prompts of one length, without padding")
        processor = copy.copy(processor)
        processor.prompt_ignore_length = padded[0] or None
    return processor


def _decoded(
    decoder: Decoder, prompts: list[list[int]], paddings: list[list[int]], options: GenerationOptions
) -> list[list[int]]:
    if isinstance(decoder, BatchDecoder):
        return [trace.output for trace in decoder.decode_batch(prompts, options, paddings=paddings)]
    if any(paddings):
        raise UserError(f"attention_mask: {type(decoder).__module__} decodes prompts without padding alone")
    return [decoder.decode(prompt, options.keyed([options.key(row)])).output for row, prompt in enumerate(prompts)]


def _refuse(
    target: LanguageModel, model: Any, input_ids: Tensor, config: GenerationConfig, model_kwargs: dict[str, Any]
) -> None:
    if model is not target.model:
        raise UserError("custom_generate: this DynaTree was made for another model")
    for key, accepted in _HONOURED.items():
        value = getattr(config, key, None)
        if value not in accepted:
            raise UserError(f"{key}: {value!r} cannot be honoured here; it may be {accepted[0]!r}")
    # What holds nothing `generate` itself has added, for models that also take images.
    others = [(key, value) for key, value in model_kwargs.items() if key not in _PREPARED]
    if further := [key for key, value in others if value is not None and not (isinstance(value, dict) and not value)]:
        raise UserError(f"{further[0]}: an input of the model besides the text cannot be honoured here; leave it out")
    cache = model_kwargs.get("cache")
    if cache is not None and cache.get_seq_length() > 0:
        raise UserError("cache: it holds keys and values already; give the whole text as input_ids")
    if input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None:
        raise UserError("input_ids: there are none; embeddings cannot be decoded here")


def _refuse_positions(given: Tensor | None, seen: Tensor) -> None:
    """Raise UserError where the positions `given` are not those that `generate` makes of the mask `seen` [b, n]."""
    if given is None:
        return
    own = seen.cumsum(1) - 1
    if given.shape[-1:] != own.shape[-1:] or bool((given.expand_as(own) != own)[seen.bool()].any()):
        raise UserError("position_ids: positions are counted from a prompt's first token; leave them out")


def _fast(processors: Sequence[Any], padded: list[int]) -> tuple[float, int, list[Any]]:
    """Repetition penalty and n-gram size that lead the list, for which we have a fast path, and the others.

    transformers tells its penalty the `padded` lengths to pass over.
    """
    penalty, size, further = 1.0, 0, list(processors)
    if further and type(further[0]) is RepetitionPenaltyLogitsProcessor:
        ignored = further[0].prompt_ignore_length
        if (ignored is None and not any(padded)) or (isinstance(ignored, Tensor) and ignored.tolist() == padded):
            penalty = float(further.pop(0).penalty)
    if further and type(further[0]) is NoRepeatNGramLogitsProcessor:
        size = int(further.pop(0).ngram_size)
    return penalty, size, further


def _usual(warper: Any) -> bool:
    """Whether it is as `generate` makes it."""
    return getattr(warper, "min_tokens_to_keep", 1) == 1 and getattr(warper, "filter_value", -math.inf) == -math.inf


def _sampling(
    processors: list[Any], config: GenerationConfig, seed: int | None, rows: int
) -> tuple[list[Any], dict[str, Any]]:
    """The processors that stay, and the options of sampling, which `generate` has made warpers at the list's end of."""
    if not config.do_sample:
        if seed is not None:
            raise UserError(f"seed: {seed} is for sampling, and decoding is greedy; add do_sample=True")
        return processors, {}
    kept, found = [*processors], dict[str, Any]()
    for name, kind, value in reversed(_WARPERS):
        if kept and type(kept[-1]) is kind and _usual(kept[-1]):
            found[name] = value(kept.pop())
    # Equal rows are to differ where nobody asked for a text that can be had again.
    several = rows if seed is None else config.num_return_sequences or 1
    keys = tuple(row % several for row in range(rows))
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (1,)))
    return kept, {"do_sample": True, "seed": seed, "request_key": keys, **found}
