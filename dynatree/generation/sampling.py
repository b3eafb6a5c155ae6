"""Sampling by shared noise: the token at a position is the argmax of log p + g, g being the position's Gumbel noise.

g depends on a seed, a request's key and the absolute position alone, never on how the text was drafted, so any tree and
any policy give the tokens of autoregressive sampling, one by one (Gumbel-max coupling: Daliri et al. 2024, 2408.07978;
children of a node by Gumbel-top-k: Kool et al. 2019, 1903.06059). For comparison a drafter may also draw by noise of
its own.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.random import Philox
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from dynatree.config import Knobs
from dynatree.engine.context import Words
from dynatree.engine.graph.kernels.drawing import drawing
from dynatree.generation.logits_processors import check_numbers, greedy_token

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
TopK = Annotated[int, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]
# How a drafter ranks tokens: by the target's noise, by noise of its own (drawn without replacement), by none.
DraftNoise = Literal["shared", "independent", "none"]

# Positions whose noise is kept: a tree's levels, most of which the next round asks for again.
_KEPT = 16
# What random numbers are for: the last word of the counter. (The key is taken by seed and request key.)
_TARGET, _DRAFT, _VERIFICATION = range(3)
# Uniform numbers that are made at once.
_BLOCK = 64
# What float32 loses in sums of scores and noise, of their size, at most; generously.
_ROUNDING = 1e-5
# A share of the probability by so much below another is it however it is summed.
_PLAIN = 1e-3
_NEVER = -math.inf

Scores = NDArray[np.float32]


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
        rows = [self.warped_row(row) for row in scores.float().cpu().numpy()]
        return torch.from_numpy(np.stack(rows)).to(scores.device)

    def warped_row(self, scores: Scores) -> Scores:
        """The same of one row [v]."""
        scores = self.scaled(scores)
        least = self.least(scores)
        return np.where(scores >= least, scores, np.float32(_NEVER)) if least > _NEVER else scores

    def scaled(self, scores: Scores) -> Scores:
        """Of one row [v] the same before anything is left out."""
        return scores / np.float32(self.temperature) if self.temperature != 1 else scores

    def least(self, scores: Scores) -> float:
        """Of `scaled` ones [v] the least that is drawn; -inf: all are."""
        least = _NEVER
        if 0 < self.top_k < len(scores):
            # By torch: numpy has no few largest, and of a whole vocabulary a partition takes longer.
            least = float(torch.from_numpy(scores).topk(self.top_k).values[-1])
        if self.top_p < 1:
            least = max(least, _nucleus(scores, self.top_p, least))
        if self.min_p:
            least = max(least, float(scores.max()) + math.log(self.min_p))
        return least

    def keeps(self, scores: Scores, token: int) -> bool:
        """Whether it is plain that, by `scaled` ones [v], the `token` may be drawn, without the `least`."""
        if not (self.top_k or self.top_p < 1 or self.min_p):
            return True
        own, top = scores[token], scores.max()
        if own == top:
            return True
        if self.top_k or self.min_p or not np.isfinite(top):
            return False
        probability = np.exp(scores - top)
        return float(probability[scores > own].sum()) < (self.top_p - _PLAIN) * float(probability.sum())


class Noise:
    """Standard Gumbel noise of one request by absolute position, to a resolution of 2**-32 in probability.

    A counter-based generator (Philox, Salmon et al. 2011) gives it: its key is `seed` and `request_key`, its counter
    the position, so that batches, trees and restarts agree. Other counters of the same key give what is independent of
    it: noise of drafted nodes, and the uniform numbers of a verification.
    """

    def __init__(self, seed: int, request_key: int):
        # As an array: a list that holds 2**63 or more would be rounded to floats.
        self._key = np.array([seed, request_key], dtype=np.uint64)
        # Where there is one; it gives the same.
        self._library = drawing()
        # One generator, told where to begin: making one takes as long as what it gives.
        self._bits = Philox(key=self._key)
        self._begin: Any = self._bits.state
        self._kept: dict[int, Words] = {}
        self._drawn = 0  # the position whose token was drawn last

    def at(self, position: int, size: int) -> Tensor:
        """The noise [size], float32, of the tokens 0, 1, ... at `position`, counted from the text's first token."""
        return torch.from_numpy(gumbel(self.words(position, size)))

    def of(self, ids: NDArray[np.int64], position: int, size: int) -> Scores:
        """That of the tokens `ids` [k] alone, out of `size`."""
        return gumbel(self.words(position, size)[ids])

    def best(self, scores: Scores, position: int, least: float = _NEVER) -> int:
        """The argmax of `scores` [v] plus the noise at `position`, of those of at least `least`; ties to the lowest.

        Without the noise of all: no token has more than the one of the least random number, so that only those come
        into question whose score is no further behind what is found anyway. NaN is found, whatever its noise.
        """
        self._drawn = position
        words = self.words(position, len(scores))
        likeliest = int(scores.argmax())
        top = float(scores[likeliest])
        if not math.isfinite(top):
            return likeliest
        near = self._library.contenders(scores, words, likeliest, least) if self._library else None
        if near is None:
            behind = _noise_of(int(words.min())) - _noise_of(int(words[likeliest])) + _ROUNDING * (abs(top) + 1)
            (near,) = (scores >= max(least, top - behind)).nonzero()
        if len(near) == 1:
            return int(near[0])
        return int(near[(scores[near] + gumbel(words[near])).argmax()])

    def words(self, position: int, size: int) -> Words:
        """The random words that the noise is made of, without making it."""
        found = self._kept.get(position)
        if found is None or len(found) < size:
            # Of positions before the one that was drawn last nothing is asked any more; their memory is in the caches.
            over = next((place for place in self._kept if place < self._drawn), None)
            spare = None if over is None else self._kept.pop(over)
            found = self._kept[position] = self._words(position, 0, _TARGET, size, spare)
            if len(self._kept) > _KEPT:
                # What is asked for moves on; what lies far ahead is asked for again last.
                first = min(self._kept)
                del self._kept[first if first != position else max(self._kept)]
        return found[:size]

    def below(self, node: int, length: int, size: int) -> Tensor:
        """The noise [size], float32, that draws the children of `node` of the tree drafted after `length` tokens.

        No two nodes and no two rounds share any: a round that rejected a draft must tell the next one nothing.
        """
        return torch.from_numpy(gumbel(self._words(length, node, _DRAFT, size)[:size]))

    def uniforms(self, length: int) -> Iterator[float]:
        """Numbers in [0, 1), without end, for the verification after `length` tokens."""
        bits = Philox(key=self._key, counter=_counter(length, 0, _VERIFICATION))
        while True:
            # As many bits as a float has.
            yield from ((bits.random_raw(_BLOCK) >> np.uint64(11)) * 2.0**-53).tolist()

    def _words(self, position: int, node: int, purpose: int, size: int, spare: Words | None = None) -> Words:
        """The first `size` of a counter, or a few more; `spare`: memory for them that nobody needs."""
        counter = _counter(position, node, purpose)
        if self._library:
            return self._library.words(self._key, counter, size, spare)
        self._begin["state"]["counter"] = counter
        self._bits.state = self._begin
        return self._bits.random_raw(-(-size // 2)).view(np.uint32)


def gumbel(words: Words) -> Scores:
    """The noise of each of `words` [n]: the smaller the word, the larger."""
    # u - 1: the largest noise comes from the u next to 1, which float32 has no numbers for.
    rest = words.astype(np.float32)
    rest += np.float32(0.5)
    rest *= np.float32(-(2**-32))
    np.maximum(rest, np.float32(2**-24 - 1), out=rest)
    # By numpy: between forwards torch's steps take twice as long for the few tokens that come into question.
    for step in (np.log1p, np.negative, np.log, np.negative):
        step(rest, out=rest)
    return rest


def words_of(noise: Scores) -> Words:
    """For each of `noise` [n] the largest word that has it or more, to within rounding."""
    words = -np.expm1(-np.exp(-noise.astype(np.float64))) * 2.0**32 - 0.5
    return words.clip(0, 2**32 - 1).astype(np.uint32)


def _noise_of(word: int) -> float:
    """The same of one, by other means: to within its rounding."""
    return -math.log(-math.log1p(max(-(word + 0.5) * 2**-32, 2**-24 - 1)))


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
        # Nodes of a level have that of one position.
        if ids is None:
            rows = {position: self._noise.at(position, width) for position in {*positions}}
        else:
            of = ids.cpu().numpy()
            rows = {position: torch.from_numpy(self.noise(of, position, width)) for position in {*positions}}
        noise = torch.stack([rows[position] for position in positions])
        return self.warpers.warped(scores) + noise.to(scores.device)

    def noise(self, ids: NDArray[np.int64], position: int, size: int) -> Scores:
        """That of the tokens `ids` [k], out of `size`, at `position`."""
        return self._noise.of(ids, position, size)

    def words(self, position: int, size: int) -> Words:
        """The random words [size] of the tokens at `position`, of which the noise is made: the smaller, the larger."""
        return self._noise.words(position, size)

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
        scaled = self.warpers.scaled(scores.float().cpu().numpy())
        # Most often the best of all may be drawn: what may be takes longer to find.
        found = self._noise.best(scaled, position)
        if not self.warpers.keeps(scaled, found):
            found = self._noise.best(scaled, position, self.warpers.least(scaled))
        check_numbers(float(scaled[found]), scores.dtype)
        return found

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


def _nucleus(scores: Scores, mass: float, least: float) -> float:
    """The lowest of the best of `scores` [v] that have `mass` together, of what those of at least `least` have."""
    top = scores.max()
    if not np.isfinite(top):
        return least
    probability = np.exp(scores - top)
    if least > _NEVER:
        probability[scores < least] = 0
    # In float64: a sum's last bits must decide nothing.
    total = float(probability.sum(dtype=np.float64))
    # What is less likely has too little of the whole, even all together, to be needed.
    likely = scores[probability >= total * (1 - mass) / (2 * len(scores))]
    likely[::-1].sort()
    better = np.exp((likely - top).astype(np.float64)).cumsum()
    # Those before which there is less than the mass.
    return float(likely[min(int(np.searchsorted(better, mass * total)), len(likely) - 1)])
