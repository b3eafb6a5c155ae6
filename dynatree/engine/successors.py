"""What a target puts after each token, as it was seen on much text: a table, where a drafter would need a forward.

Sources: bigrams of the target's own (N-Grammys, Stewart et al. 2024, 2411.03786); a table of candidate tokens from
which a tree is grown (Token Recycling, Luo et al. 2024, 2408.08696).
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from dynatree import files
from dynatree.errors import UserError, readable

# Of the log-probability of what was not seen: such a place is never proposed.
NEVER = -1e4
# Places at which a token is taken to be followed as any token is, besides those where it was seen.
_DRAWN = 2
# Vocabularies of at most so many tokens have ids of two bytes.
_SHORT = 2**16


class Successors(NamedTuple):
    """After each of v tokens the k likeliest, likeliest first. Arrays: rows are looked at one by one."""

    ids: NDArray[np.int64]  # [v, k]
    log_probs: NDArray[np.float32]  # [v, k]

    @property
    def fingerprint(self) -> str:
        """What tells the table apart."""
        digest = hashlib.sha256()
        for part in self:
            digest.update(part.tobytes())
        return digest.hexdigest()


def counted(tokens: Tensor, ids: Tensor, probabilities: Tensor, vocabulary: int, kept: int) -> Successors:
    """The table of what was likely after `tokens` [n]: its `ids` [n, m] with their `probabilities` [n, m].

    A mean over all places where a token stood, drawn to the mean over all places by as many as `_DRAWN`, which alone
    stands behind tokens that were not seen.
    """
    everywhere = torch.zeros(vocabulary).index_add_(0, ids.flatten(), probabilities.flatten().float()) / len(tokens)
    seen = torch.bincount(tokens, minlength=vocabulary)
    pairs, place = torch.unique(tokens[:, None] * vocabulary + ids, return_inverse=True)
    sums = torch.zeros(len(pairs)).index_add_(0, place.flatten(), probabilities.flatten().float())
    before, after = pairs // vocabulary, pairs % vocabulary
    probability = (sums + _DRAWN * everywhere[after]) / (seen[before] + _DRAWN)
    # By token, and within it likeliest first; equal ones by id.
    order = torch.argsort(probability, descending=True, stable=True)
    order = order[torch.argsort(before[order], stable=True)]
    before, after, probability = before[order], after[order], probability[order]
    rank = torch.arange(len(before)) - torch.searchsorted(before, torch.arange(vocabulary))[before]
    kept = min(kept, vocabulary)
    usual = torch.topk(everywhere, kept)
    found = usual.indices.repeat(vocabulary, 1), usual.values.log().clamp(min=NEVER).repeat(vocabulary, 1)
    found[0][seen > 0], found[1][seen > 0] = 0, NEVER
    near = rank < kept
    found[0][before[near], rank[near]] = after[near]
    found[1][before[near], rank[near]] = probability[near].log()
    return Successors(found[0].numpy(), found[1].numpy())


def save(table: Successors, path: Path) -> None:
    """Write the table, in half precision."""
    ids = table.ids.astype(np.uint16 if len(table.ids) <= _SHORT else np.int32)
    with files.replacing(path) as temporary:
        save_file({"ids": ids, "log_probs": table.log_probs.astype(np.float16)}, temporary)
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
    return Successors(ids, log_probs.clip(min=NEVER))
