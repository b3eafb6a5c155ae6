"""What a target puts after each token, as it was seen on much text: a table, where a drafter would need a forward.

Sources: bigrams of the target's own (N-Grammys, Stewart et al. 2024, 2411.03786); a table of candidate tokens from
which a tree is grown (Token Recycling, Luo et al. 2024, 2408.08696).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from dynatree import files
from dynatree.engine.context import Context
from dynatree.errors import UserError, readable

# Of the log-probability of what was not seen: such a place is never proposed.
NEVER = -1e4
# Places at which a token is taken to be followed as any token is, besides those where it was seen.
_DRAWN = 2
# Vocabularies of at most so many tokens have ids of two bytes.
_SHORT = 2**16
# Of a file's tensors those of a context.
_CONTEXT = "context."


class Successors(NamedTuple):
    """After each of v tokens the k likeliest, likeliest first. Arrays: rows are looked at one by one.

    `context`: what the target's state adds (context.py); None: that was not learnt.
    """

    ids: NDArray[np.int64]  # [v, k]
    log_probs: NDArray[np.float32]  # [v, k]
    context: Context | None = None

    @property
    def fingerprint(self) -> str:
        """What tells the table apart."""
        digest = hashlib.sha256()
        for part in (self.ids, self.log_probs, *(self.context or ())):
            digest.update(part.tobytes())
        return digest.hexdigest()


def everywhere(ids: Tensor, probabilities: Tensor, vocabulary: int) -> Tensor:
    """The mean probability [v] of each token over n places, of its `probabilities` [n, m] there, which are of `ids`."""
    sums = torch.zeros(vocabulary).index_add_(0, ids.flatten(), probabilities.flatten().float())
    return sums / len(ids)


def unseen(tokens: Tensor, vocabulary: int) -> Tensor:
    """[v] how much of the probability behind each token is that of all places, if `tokens` [n] were seen."""
    return _DRAWN / (torch.bincount(tokens, minlength=vocabulary) + _DRAWN)


def counted(tokens: Tensor, ids: Tensor, probabilities: Tensor, vocabulary: int, kept: int) -> Successors:
    """The table of what was likely after `tokens` [n]: its `ids` [n, m] with their `probabilities` [n, m].

    A mean over all places where a token stood, drawn to the mean over all places by as many as `_DRAWN`, which alone
    stands behind tokens that were not seen.
    """
    anywhere = everywhere(ids, probabilities, vocabulary)
    seen = torch.bincount(tokens, minlength=vocabulary)
    pairs, place = torch.unique(tokens[:, None] * vocabulary + ids, return_inverse=True)
    sums = torch.zeros(len(pairs)).index_add_(0, place.flatten(), probabilities.flatten().float())
    before, after = pairs // vocabulary, pairs % vocabulary
    probability = (sums + _DRAWN * anywhere[after]) / (seen[before] + _DRAWN)
    # By token, and within it likeliest first; equal ones by id.
    order = torch.argsort(probability, descending=True, stable=True)
    order = order[torch.argsort(before[order], stable=True)]
    before, after, probability = before[order], after[order], probability[order]
    rank = torch.arange(len(before)) - torch.searchsorted(before, torch.arange(vocabulary))[before]
    kept = min(kept, vocabulary)
    usual = torch.topk(anywhere, kept)
    found = usual.indices.repeat(vocabulary, 1), usual.values.log().clamp(min=NEVER).repeat(vocabulary, 1)
    found[0][seen > 0], found[1][seen > 0] = 0, NEVER
    near = rank < kept
    found[0][before[near], rank[near]] = after[near]
    found[1][before[near], rank[near]] = probability[near].log()
    return Successors(found[0].numpy(), found[1].numpy())


def save(table: Successors, path: Path) -> None:
    """Write the table, in half precision."""
    ids = table.ids.astype(np.uint16 if len(table.ids) <= _SHORT else np.int32)
    rows = {"ids": ids, "log_probs": table.log_probs.astype(np.float16)}
    context = {} if table.context is None else table.context._asdict()
    with files.replacing(path) as temporary:
        save_file(rows | {_CONTEXT + name: part.astype(np.float16) for name, part in context.items()}, temporary)
        temporary.chmod(0o644)


def load(path: Path, vocabulary: int) -> Successors | None:
    """The table in `path`; None if there is no such file. Raises UserError for one that is not of so many tokens."""
    if not path.is_file():
        return None
    with readable(str(path)):
        parts = load_file(path)
        ids, log_probs = parts["ids"].astype(np.int64), parts["log_probs"].astype(np.float32)
    if ids.shape != log_probs.shape or ids.ndim != 2 or not ids.shape[1]:
        raise UserError(f"{path}: ids {[*ids.shape]} and log_probs {[*log_probs.shape]}; expected two of one shape")
    if len(ids) != vocabulary or not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise UserError(f"{path}: it is of {len(ids)} tokens, the drafter's vocabulary has {vocabulary}; make it again")
    return Successors(ids, log_probs.clip(min=NEVER), _context(parts, path, vocabulary))


def _context(parts: Mapping[str, NDArray[np.float16]], path: Path, vocabulary: int) -> Context | None:
    """The context among the tensors of the file `path`, if one is there."""
    found = {
        name.removeprefix(_CONTEXT): part.astype(np.float32)
        for name, part in parts.items()
        if name.startswith(_CONTEXT)
    }
    if not found:
        return None
    if set(found) != set(Context._fields):
        raise UserError(f"{path}: a context of {', '.join(sorted(found))}; expected {', '.join(Context._fields)}")
    context = Context(**found)
    if wrong := context.misfit(vocabulary):
        raise UserError(f"{path}: context: {wrong}; make it again")
    return context
