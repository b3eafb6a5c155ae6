"""Perplexity of a data set under a model, by a sliding window. (Outputs' own: audit.py.)"""

import math
import sys
from pathlib import Path

import torch

from dynatree.engine import kept
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError


def sliding(
    target: LanguageModel, documents: list[list[int]], limit: int, window: int, stride: int
) -> dict[str, float]:
    """Perplexity over the first `limit` tokens of `documents`, each scored apart.

    Windows of `window` tokens move by `stride`; a token is scored once, in the first window that holds it, so all but
    a document's first have at least window - stride tokens of context, as far as there are any. The first token of a
    document has no context and is not scored. Keys: perplexity, tokens. Raises UserError for a stride that would leave
    tokens without context, a window beyond the model's context, and documents with nothing to score.
    """
    if not 1 <= stride < window:
        raise UserError(f"perplexity_stride: {stride}; choose 1..{window - 1}, below perplexity_window {window}")
    if target.context_limit is not None and window - 1 > target.context_limit:
        raise UserError(f"perplexity_window: {window}; {target.name}'s context admits {target.context_limit + 1}")
    if not any(len(ids) > 1 for ids in documents):
        raise UserError(f"perplexity: {len(documents)} documents, none with two tokens or more")
    total, count = 0.0, 0
    for ids in documents:
        ids = ids[: limit - count + 1]
        scored = 1
        begin = 0
        while scored < len(ids):
            end = min(begin + window, len(ids))
            tokens = torch.tensor(ids[begin:end])
            fresh = end - scored
            logits = target.score(tokens[:-1], last=fresh).float()
            labels = tokens[-fresh:].to(logits.device)
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += fresh
            scored = end
            begin += stride
            print(f"perplexity: {count:,} of {limit:,} tokens: {math.exp(total / count):.2f}", file=sys.stderr)
        if count >= limit:
            break
    return {"perplexity": math.exp(total / count), "tokens": count}


def of_formats(
    folder: Path, documents: list[list[int]], limit: int, window: int, dtypes: tuple[str, ...], device: str
) -> dict[str, dict[str, float]]:
    """What `sliding` gives for the model in `folder` in each of `dtypes`, one loaded after the other.

    Windows of `window` tokens, or as many as the model's context admits, move by half of that. Raises UserError as
    `sliding` and `kept.pair` do.
    """
    found = {}
    for dtype in dtypes:
        target = kept.pair({"target": folder}, dtype, device).target
        size = window if target.context_limit is None else min(window, target.context_limit + 1)
        found[dtype] = sliding(target, documents, limit, size, size // 2)
    return found
