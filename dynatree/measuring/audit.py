"""Is an output what autoregressive decoding of the target gives? Teacher-force it and look at every emitted token.

Where a forward has the same bits whatever the tree no token may differ. Elsewhere batched verification and one-token
steps use different kernels, so a near-tie may flip; a flip above the tolerance is an error of the decoder. Also the
output's perplexity, since the same logits give it, and its repetition. Where tokens are drawn the same noise is added
first; of texts that were drawn otherwise nothing but perplexity and repetition is told.
"""

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dynatree.data.prompts import Prompt
from dynatree.data.splits import TUNING, SplitDocument
from dynatree.engine.compatibility import BITWISE
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.logits_processors import greedy_token
from dynatree.generation.options import GREEDY, GenerationOptions
from dynatree.tree import TokenTree

# Largest logit distance from the argmax that rounding may cause.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
TOLERANCE_DOCUMENTS, TOLERANCE_TOKENS = 2, 256
REPETITION_ORDER = 17
# What was measured of a target over some texts, and the facts of outputs, for a process that audits more than one run
# of it: methods that are exact give the same output, and the same tokens have the same logits.
_MEASURED: WeakKeyDictionary[LanguageModel, dict[tuple[tuple[int, ...], ...], float]] = WeakKeyDictionary()
_AUDITED: WeakKeyDictionary[LanguageModel, dict[tuple[Any, ...], dict[str, Any]]] = WeakKeyDictionary()


def tolerance(target: LanguageModel, documents: Sequence[SplitDocument]) -> float:
    """0 where forwards are bitwise; else TOLERANCE of the target's dtype.

    For half precisions it is twice the largest logit difference between a batched forward and one-token forwards, which
    is what decoders mix, over the beginnings of the first tuning documents: what is measured must not set its own
    tolerance. Raises UserError if there is no tuning document.
    """
    if target.exact == BITWISE:
        return 0.0
    if target.dtype in TOLERANCE:
        return TOLERANCE[target.dtype]
    length = min(TOLERANCE_TOKENS, target.context_limit or TOLERANCE_TOKENS)
    texts = tuple(tuple(d.ids[:length]) for d in documents if d.split == TUNING and d.ids)[:TOLERANCE_DOCUMENTS]
    if not texts:
        raise UserError(f"audit: none of {len(documents)} documents is of the tuning split, which sets the tolerance")
    known = _MEASURED.setdefault(target, {})
    if texts not in known:
        known[texts] = _largest_difference(target, texts)
    return 2 * known[texts]


def _largest_difference(target: LanguageModel, texts: Sequence[Sequence[int]]) -> float:
    """Between the logits of a batched forward over each of `texts` and those of one-token forwards."""
    largest = 0.0
    for ids in texts:
        tokens = torch.tensor(ids)
        batched = target.forward(tokens, target.new_caches(1)[0]).float()
        (cache,) = target.new_caches(1)
        for i in range(len(ids)):
            single = target.forward(tokens[i : i + 1], cache).float()[0]
            largest = max(largest, float((single - batched[i]).abs().max()))
    return largest


def audit(
    target: LanguageModel,
    prompt: list[int],
    output: list[int],
    eps: float,
    options: GenerationOptions = GREEDY,
    comparable: bool = True,
) -> dict[str, Any]:
    """Facts of one output: flips, largest gap, first flip, negative log-likelihood a token, perplexity, repetition.

    `repeated` [output tokens] says which of them are repetition, `repetition` how large a share.

    Flips and gaps are of the processed logits, with the noise of `options`, those that the prompt was decoded by, if
    they sample; they are None for an output that is not `comparable`. The perplexity is of the target's own logits.

    What was asked before of the same target is not computed again.

    Raises UserError if a token lies more than `eps` (logits) below the argmax.
    """
    known = _AUDITED.setdefault(target, {})
    asked = (*prompt,), (*output,), eps, options, comparable
    if asked not in known:
        known[asked] = _facts(target, prompt, output, eps, options, comparable)
    return dict(known[asked])


def _facts(
    target: LanguageModel,
    prompt: list[int],
    output: list[int],
    eps: float,
    options: GenerationOptions,
    comparable: bool,
) -> dict[str, Any]:
    """As `audit`, computed."""
    tokens = torch.tensor([*prompt, *output])
    # The logits before each emitted token; the last token's own are not needed.
    scores = target.score(tokens[:-1], last=len(output)).float().cpu()
    emitted = torch.tensor(output)[:, None]
    found = compare(scores, prompt, output, eps, options) if comparable else NOT_COMPARED
    again = repeated(prompt, output)
    loss = float((scores.logsumexp(1) - scores.gather(1, emitted).squeeze(1)).double().mean())
    return {
        **found,
        "negative_log_likelihood": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # finite, so that records can hold it
        "repetition": sum(again) / len(again),
        "repeated": again,
        "tolerance": eps,
    }


NOT_COMPARED = {"flips": None, "first_flip": None, "largest_gap": None}


def compare(
    scores: Tensor, prompt: list[int], output: list[int], eps: float, options: GenerationOptions
) -> dict[str, Any]:
    """Flips, first flip and largest gap of `output` by the target's `scores` [output tokens, vocabulary] before each.

    Raises UserError for a gap above `eps`.
    """
    text, processors = torch.tensor([*prompt, *output]), options.processors
    path = TokenTree.root(prompt[-1]).chain(output[:-1], [0.0] * (len(output) - 1))
    logits = processors.process(scores.clone() if processors.active else scores, text[: len(prompt)], path)
    sampler, gaps, flips = options.sampler(), torch.empty(len(output)), []
    # Scores are divided by the temperature before the noise is added.
    eps = eps / sampler.temperature if sampler else eps
    # Row by row, as in decoding: the noise of a long output would be as large as its logits.
    for place, (row, token) in enumerate(zip(logits, output, strict=True)):
        perturbed = sampler.perturbed(row[None], [len(prompt) + place])[0] if sampler else row
        if greedy_token(perturbed) != token:
            flips.append(place)
        gaps[place] = perturbed.max() - perturbed[token]
        if sampler and eps and gaps[place] > eps:
            gaps[place] = sampler.gap(row, token, len(prompt) + place, eps)
    worst = float(gaps.max())
    if not worst <= eps:
        at = int(gaps.argmax())
        raise UserError(
            f"not exact: output token {at} ({output[at]}) lies {worst:.3g} logits below the target's argmax, "
            f"more than rounding explains ({eps:.1g})"
        )
    return {"flips": len(flips), "first_flip": flips[0] if flips else None, "largest_gap": worst}


def repeated(prompt: list[int], output: list[int], order: int = REPETITION_ORDER) -> list[int]:
    """Of each output token 1 if the `order`-gram that ends there occurred earlier in prompt + output, else 0."""
    text = [*prompt, *output]
    seen: set[tuple[int, ...]] = set()
    flags = []
    for end in range(1, len(text) + 1):
        gram = tuple(text[max(0, end - order) : end])
        if end > len(prompt):
            flags.append(int(gram in seen))
        if end >= order:
            seen.add(gram)
    return flags


def records(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    outputs: Sequence[dict[str, Any]],
    eps: float,
    options: GenerationOptions = GREEDY,
    comparable: bool = True,
) -> list[dict[str, Any]]:
    """The facts of each output record (runs.py), in order. Raises UserError at the first that is not exact."""
    ids = {prompt.prompt_id: prompt.ids for prompt in prompts}
    keys = {prompt.prompt_id: key for key, prompt in enumerate(prompts)}
    rows = []
    for output in outputs:
        name = output["prompt_id"]
        asked = options.keyed([keys[name]])
        try:
            facts = audit(target, ids[name], output["output_ids"], eps, asked, comparable)
            rows.append({"prompt_id": name, "repeat": output["repeat"], **facts})
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return rows
