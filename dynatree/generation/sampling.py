"""Sampling by shared noise: the token at a position is the argmax of log p + g, g being the position's Gumbel noise.

g depends on a seed, a request's key and the absolute position alone, never on how the text was drafted, so any tree and
any policy give the tokens of autoregressive sampling, one by one (Gumbel-max coupling: Daliri et al. 2024, 2408.07978;
children of a node by Gumbel-top-k: Kool et al. 2019, 1903.06059). For comparison a drafter may also draw by noise of
its own.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.random import Philox
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from dynatree.config import Knobs
from dynatree.generation.logits_processors import greedy_token

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
TopK = Annotated[int, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]
# How a drafter ranks tokens: by the target's noise, by noise of its own (drawn without replacement), by none.
DraftNoise = Literal["shared", "independent", "none"]

# Positions whose noise is kept: a tree's levels, most of which the next round asks for again.
_KEPT = 16
# Of a row's best scores first so many are looked at for a nucleus: sorting a vocabulary takes milliseconds.
_FEW = 256
# What random numbers are for: the last word of the counter. (The key is taken by seed and request key.)
_TARGET, _DRAFT, _VERIFICATION = range(3)
# Uniform numbers that are made at once.
_BLOCK = 64


class Warpers(Knobs):
    """What `generate` does to scores before it draws, in its order: temperature, then the best `top_k` (0: all), then
    the likeliest whose sum reaches `top_p` (Holtzman et al. 2020, 1904.09751), then those of at least `min_p` times the
    likeliest's probability (Nguyen et al. 2024, 2407.01082).
    """

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0

    def warped(self, scores: Tensor) -> Tensor:
        """Log-probabilities [n, v] in float32, each row but for a constant, of `scores` [n, v]; -inf: never drawn."""
        scores = scores.float()
        if self.temperature != 1:
            scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[1]:
            scores = _at_least(scores, scores.topk(self.top_k).values[:, -1:])
        if self.top_p < 1:
            scores = _at_least(scores, _nucleus(scores, self.top_p))
        if self.min_p:
            scores = _at_least(scores, scores.amax(1, keepdim=True) + math.log(self.min_p))
        return scores


class Noise:
    """Standard Gumbel noise of one request by absolute position, to a resolution of 2**-32 in probability.

    A counter-based generator (Philox, Salmon et al. 2011) gives it: its key is `seed` and `request_key`, its counter
    the position, so that batches, trees and restarts agree. Other counters of the same key give what is independent of
    it: noise of drafted nodes, and the uniform numbers of a verification.
    """

    def __init__(self, seed: int, request_key: int):
        # As an array: a list that holds 2**63 or more would be rounded to floats.
        self._key = np.array([seed, request_key], dtype=np.uint64)
        self._kept: dict[int, Tensor] = {}

    def at(self, position: int, size: int) -> Tensor:
        """The noise [size], float32, of the tokens 0, 1, ... at `position`, counted from the text's first token."""
        found = self._kept.get(position)
        if found is None or len(found) < size:
            found = self._kept[position] = self._gumbel(position, 0, _TARGET, size)
            if len(self._kept) > _KEPT:
                # What is asked for moves on; what lies far ahead is asked for again last.
                first = min(self._kept)
                del self._kept[first if first != position else max(self._kept)]
        return found[:size]

    def below(self, node: int, length: int, size: int) -> Tensor:
        """The noise [size], float32, that draws the children of `node` of the tree drafted after `length` tokens.

        No two nodes and no two rounds share any: a round that rejected a draft must tell the next one nothing.
        """
        return self._gumbel(length, node, _DRAFT, size)

    def uniforms(self, length: int) -> Iterator[float]:
        """Numbers in [0, 1), without end, for the verification after `length` tokens."""
        bits = Philox(key=self._key, counter=_counter(length, 0, _VERIFICATION))
        while True:
            # As many bits as a float has.
            yield from ((bits.random_raw(_BLOCK) >> np.uint64(11)) * 2.0**-53).tolist()

    def _gumbel(self, position: int, node: int, purpose: int, size: int) -> Tensor:
        bits = Philox(key=self._key, counter=_counter(position, node, purpose))
        words = bits.random_raw(-(-size // 2)).view(np.uint32)[:size]
        # u - 1: the largest noise comes from the u next to 1, which float32 has no numbers for.
        rest = torch.from_numpy(words.astype(np.float32)).add_(0.5).mul_(-(2**-32)).clamp_(min=2**-24 - 1)
        # In place, by torch: it has a vector instruction's log1p where numpy computes number by number.
        return rest.log1p_().neg_().log_().neg_()


def _counter(position: int, node: int, purpose: int) -> NDArray[np.uint64]:
    """Philox counts up in the first word; the others tell streams apart."""
    return np.array([0, position, node, purpose], dtype=np.uint64)


class Draw(NamedTuple):
    """Children of a node, drawn one after another without replacement.

    columns    [k] int64    in the order of drawing
    log_probs  [c] float32  of all columns, what the first was drawn from
    ids        [c] int64    the tokens that the columns are of; None: all, in order
    """

    columns: Tensor
    log_probs: Tensor
    ids: Tensor | None

    def token(self, column: int) -> int:
        """The token that a column is of."""
        return column if self.ids is None else int(self.ids[column])

    def one_by_one(self) -> Iterator[tuple[int, Tensor]]:
        """Each drawn column, with the probabilities [c] that it was drawn from: without those before it."""
        probability = self.log_probs.exp()
        for column in self.columns.tolist():
            # Of fewer tokens than were asked for the rest are impossible (or not a number), and were not drawn.
            if not probability[column] > 0:
                return
            yield column, probability
            probability = probability.clone()
            probability[column] = 0
            probability /= probability.sum()


class Sampler:
    """Draws the tokens of one request."""

    def __init__(self, warpers: Warpers, seed: int, request_key: int):
        self.warpers = warpers
        self._noise = Noise(seed, request_key)

    @property
    def temperature(self) -> float:
        return self.warpers.temperature

    def perturbed(
        self, scores: Tensor, positions: Sequence[int], ids: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Warped `scores` [n, v] plus the noise at `positions` [n], where their tokens would stand.

        `ids` [v]: the tokens that the columns are of, out of `size`; None: all, in order.
        """
        width = scores.shape[1] if ids is None or size is None else size
        rows = [self._noise.at(position, width) for position in positions]
        rows = rows if ids is None else [row[ids] for row in rows]
        # Not stacked where there is one: that copies a vocabulary.
        noise = rows[0][None] if len(rows) == 1 else torch.stack(rows)
        return self.warpers.warped(scores) + noise.to(scores.device)

    def perturbed_some(
        self, scores: NDArray[np.float32], position: int, ids: NDArray[np.int64], size: int
    ) -> NDArray[np.float32]:
        """The same of one row, with `scores` of the tokens `ids` alone."""
        noise = self.noise(position, size)[ids]
        found: NDArray[np.float32] = self.warpers.warped(torch.from_numpy(scores)[None])[0].numpy() + noise
        return found

    def noise(self, position: int, size: int) -> NDArray[np.float32]:
        """That of the tokens 0 to before `size` at `position`."""
        found: NDArray[np.float32] = self._noise.at(position, size).numpy()
        return found

    def below(self, nodes: Sequence[int], length: int, size: int) -> Tensor:
        """Noise [n, size] that draws the children of each of `nodes` of the tree drafted after `length` tokens."""
        return torch.stack([self._noise.below(node, length, size) for node in nodes])

    def uniforms(self, length: int) -> Iterator[float]:
        """See `Noise`."""
        return self._noise.uniforms(length)

    def probabilities(self, scores: Tensor) -> Tensor:
        """What a token is drawn from, [v] in float32 on the CPU, by its `scores` [v].

        Raises UserError where they are not numbers.
        """
        probability = torch.softmax(self.warpers.warped(scores[None])[0], dim=0).cpu()
        if probability.isnan().any():
            # Nothing is possible: the token that greedy decoding takes.
            probability = torch.zeros_like(probability)
            probability[greedy_token(scores)] = 1
        return probability

    def token(self, scores: Tensor, position: int) -> int:
        """The token at `position`, by its `scores` [v]. Raises UserError where they are not numbers."""
        return greedy_token(self.perturbed(scores[None], [position])[0])

    def gap(self, scores: Tensor, token: int, position: int, eps: float) -> float:
        """How far `token` is behind the best at `position`, by `scores` [v] that are right to within `eps`, warped.

        Rounding may move the edge of what the warpers leave: whether its last token or the next one is in is open.
        """
        noise = self._noise.at(position, len(scores)).to(scores.device)
        scaled, inside = scores.float() / self.temperature, self.warpers.warped(scores[None])[0]
        least = inside[inside.isfinite()].min()
        below = scaled[scaled < least - eps]
        if scaled[token] < (below.max() if len(below) else least) - eps:
            return math.inf
        sure = scaled > least + eps
        best = (scaled + noise)[sure].max() if sure.any() else scaled[token] + noise[token]
        return float(best - scaled[token] - noise[token])


def _at_least(scores: Tensor, least: Tensor) -> Tensor:
    """`scores` [n, v] with -inf for those below `least` [n, 1]."""
    return scores.masked_fill(scores < least, -torch.inf)


def _nucleus(scores: Tensor, mass: float) -> Tensor:
    """[n, 1]: the lowest of the best scores of each row that have `mass` together."""
    # In float64: a sum's last bits must decide nothing.
    total = scores.double().logsumexp(1, keepdim=True)
    for count in (min(_FEW, scores.shape[1]), scores.shape[1]):
        best = scores.topk(count).values
        probability = (best.double() - total).exp()
        better = probability.cumsum(1) - probability
        if bool((better[:, -1] >= mass).all()):
            break
    kept = better < mass
    kept[:, 0] = True
    return best.masked_fill(~kept, torch.inf).amin(1, keepdim=True)
