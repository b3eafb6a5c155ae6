"""Prompt lookup as drafter: the continuation of the longest earlier match of the text's end, without any forward.

Sources: prompt lookup (Saxena 2023), REST (He et al. 2023, 2311.08252), SAM-Decoding (Hu et al. 2024, 2411.10666). The
confidence of a proposed token depends on how long the match is by then, and is learnt while decoding.
"""

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from dynatree.costs.step_rates import StepCalibration
from dynatree.drafting import NOTHING
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.logits_processors import PLAIN, Processors

MODEL = "unused"

# Lower ends of the match-length buckets, in tokens.
BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25, 41)
# How often a proposed token was right in each bucket, on greedy continuations of tuning text.
PRIOR = (0.28, 0.45, 0.60, 0.68, 0.74, 0.80, 0.88, 0.92, 0.95, 0.97, 0.98, 0.995)
# Weight of an observation in a bucket's moving rate: text starts and stops repeating.
_PACE = 0.05
_LONGEST_MATCH = 64
# Earlier places of the last two tokens that are compared, latest first.
_CANDIDATES = 12


class Confidence:
    """Probability that the next proposed token is right, by the match's length in tokens; learnt online."""

    def __init__(self, prior: Sequence[float] = PRIOR) -> None:
        self._rates = list(prior)

    def steps(self, matched: int, count: int) -> list[float]:
        """Probabilities [count] of the proposed tokens behind a match of `matched` tokens: each hit lengthens it."""
        return [self._rates[bucket(matched + i)] for i in range(count)]

    def observe(self, matched: int, hit: bool) -> None:
        """One proposed token behind a match of `matched` tokens was right, or was not."""
        place = bucket(matched)
        self._rates[place] += _PACE * (hit - self._rates[place])


def bucket(matched: int) -> int:
    """The match-length bucket of a match of `matched` tokens, at least 1."""
    return bisect_right(BUCKETS, matched) - 1


class Drafter:
    """Proposes one chain a round; has no levels to grow."""

    def __init__(
        self,
        model: LanguageModel | None = None,
        calibration: StepCalibration | None = None,
        candidates: int = _CANDIDATES,
    ):
        self._candidates = candidates
        self._prior = tuple(calibration.lookup) if calibration else PRIOR
        self._prior_processed = tuple(calibration.lookup_processed if calibration else ()) or self._prior
        for prior in (self._prior, self._prior_processed):
            if len(prior) != len(BUCKETS):
                raise UserError(f"calibration: {len(prior)} rates of lookup, {len(BUCKETS)} expected; measure it again")
        self.start()

    def start(self, processors: Processors = PLAIN, cache: KeyValueCache | None = None) -> None:
        """Forget the last request, what was learnt of it included: a request's trace depends on nothing else."""
        self._confidence = Confidence(self._prior_processed if processors.active else self._prior)
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._indexed = 0
        self.matched = 0
        self._proposed: list[int] = []
        self._proposed_at = 0

    def free(self, committed: list[int], limit: int) -> tuple[Tensor, Tensor]:
        """Tokens [k] and step log-probabilities [k], k <= `limit`, of the chain behind `committed`."""
        self._learn(committed)
        self._index(committed)
        self.matched, source = self._longest_match(committed)
        self._proposed_at, period = len(committed), len(committed) - source
        # A match that reaches the end of the text is a cycle: go around it.
        self._proposed = [committed[source + i % period] for i in range(limit if self.matched else 0)]
        if not self._proposed:
            return NOTHING
        steps = torch.tensor(self._confidence.steps(self.matched, len(self._proposed)))
        return torch.tensor(self._proposed), steps.clamp(min=1e-4, max=1).log()

    def depth_limit(self, committed: int) -> int:
        """No level is ever grown here."""
        return 0

    def accept(self, kept: Tensor) -> None:
        """Nothing to keep: the next round compares its proposal with what was committed."""

    def _learn(self, committed: list[int]) -> None:
        # Scored against what was committed, verified or not, so that a distrusted bucket can recover.
        for i, (proposed, token) in enumerate(zip(self._proposed, committed[self._proposed_at :], strict=False)):
            self._confidence.observe(self.matched + i, proposed == token)
            if proposed != token:
                break

    def _index(self, committed: list[int]) -> None:
        # Not the n-grams that end with the text itself: they would match themselves.
        for end in range(max(self._indexed, 1), len(committed)):
            self._ends.setdefault((committed[end - 1],), []).append(end)
            if end > 1:
                self._ends.setdefault((committed[end - 2], committed[end - 1]), []).append(end)
        self._indexed = max(self._indexed, len(committed))

    def _longest_match(self, committed: list[int]) -> tuple[int, int]:
        """(length of the longest earlier match of the text's end, where its continuation begins); the latest wins."""
        last = len(committed)
        found = self._ends.get((committed[-2], committed[-1])) if last > 1 else None
        found = found or self._ends.get((committed[-1],)) or []
        best, source = 0, 0
        for end in reversed(found[-self._candidates :]):
            length = 1
            while length < min(end, _LONGEST_MATCH) and committed[end - 1 - length] == committed[last - 1 - length]:
                length += 1
            if length > best:
                best, source = length, end
        return best, source


def rates(continuations: Sequence[tuple[list[int], list[int]]], weight: int = 20) -> list[float]:
    """How often proposals were right in each bucket on (prompt, output) pairs, drawn to PRIOR by `weight` observations.

    Every chain is followed to its first miss, and the next one begins behind that, as in decoding.
    """
    right, seen = [weight * rate for rate in PRIOR], [weight] * len(PRIOR)
    for prompt, output in continuations:
        drafter, text, at = Drafter(), [*prompt, *output], len(prompt) + 1
        while at < len(text):
            tokens, _ = drafter.free(text[:at], len(text) - at)
            accepted = 0
            for proposed, token in zip(tokens.tolist(), text[at:], strict=False):
                place = bucket(drafter.matched + accepted)
                seen[place] += 1
                if proposed != token:
                    break
                right[place] += 1
                accepted += 1
            at += accepted + 1
    return [round(r / n, 4) for r, n in zip(right, seen, strict=True)]
