"""Prompt lookup as drafter: the continuation of the longest earlier match of the text's end, without any forward.

Sources: prompt lookup (Saxena 2023), REST (He et al. 2023, 2311.08252), SAM-Decoding (Hu et al. 2024, 2411.10666). The
confidence of a proposed token depends on how long the match is by then, and is learnt while decoding.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, cycle, islice
from weakref import WeakKeyDictionary

from torch import Tensor

from dynatree.costs.step_rates import LEAST, StepRates
from dynatree.drafting import most_levels
from dynatree.engine.draft_model import DraftModel
from dynatree.errors import UserError
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.growth import Growth
from dynatree.generation.request import Request
from dynatree.generation.sampling import DraftNoise
from dynatree.tree import TokenTree

MODEL = "unused"

# Lower ends of the match-length buckets, in tokens.
BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25, 41)
# How often a proposed token was right in each bucket, on greedy continuations of tuning text.
PRIOR = (0.28, 0.45, 0.60, 0.68, 0.74, 0.80, 0.88, 0.92, 0.95, 0.97, 0.98, 0.995)
# The same on text that does not loop: with a repetition penalty of 1.2, or drawn at temperature 1.
PRIOR_NEW = (0.16, 0.25, 0.27, 0.50, 0.55, 0.55, 0.65, 0.75, 0.80, 0.85, 0.90, 0.95)
# Text drawn at this temperature or above is nearer to the second.
_NEW_FROM = 0.85
# How many observations of a bucket what is known counts as.
_WEIGHT = 20
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
        near = [self._rates[place] for place in _PLACES[matched : matched + count]]
        return near + self._rates[-1:] * (count - len(near))

    def observe(self, matched: int, hit: bool) -> None:
        """One proposed token behind a match of `matched` tokens was right, or was not."""
        place = bucket(matched)
        self._rates[place] += _PACE * (hit - self._rates[place])


def bucket(matched: int) -> int:
    """The match-length bucket of a match of `matched` tokens, at least 1."""
    return bisect_right(BUCKETS, matched) - 1


# Of the lengths below the last bucket's: one is asked for with every token of every chain.
_PLACES = [bucket(matched) for matched in range(BUCKETS[-1])]


class Drafter:
    """Proposes one chain a round to each request; grows no levels."""

    # It goes by what is committed.
    learns = False

    def __init__(self, model: DraftModel | None = None, rates: StepRates | None = None, noise: DraftNoise = "shared"):
        self._rates = rates
        for found in rates.lookups if rates else ():
            if len(found) != len(BUCKETS):
                raise UserError(f"calibration: {len(found)} rates of lookup, {len(BUCKETS)} expected; measure it again")
        # As long as a request is there: another may begin before it has ended.
        self._lookups: WeakKeyDictionary[Request, Lookup] = WeakKeyDictionary()

    def start(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._lookups[request] = Lookup(self._trusted(request))

    def propose(self, requests: Sequence[Request], planner: BatchPlanner, least: int = 1) -> list[TokenTree]:
        """See `Drafter`; nothing behind a match of fewer than `least` tokens."""
        return [self._chain(request, planner.growth(request), least) for request in requests]

    def matched(self, request: Request) -> int:
        """Tokens of the match that the last proposal was made of."""
        return self._lookups[request].matched

    def forwards(self, request: Request) -> int:
        return 0

    def learn(self, request: Request, tree: TokenTree, path: Tensor, logits: Tensor) -> None:
        pass

    def accept(self, request: Request, tree: TokenTree, path: Tensor) -> None:
        pass  # the next round compares its proposal with what was committed

    def retain(self, requests: Sequence[Request]) -> None:
        pass  # what is held of a request is its text, and goes with it

    def _trusted(self, request: Request) -> Sequence[float]:
        if self._rates is None:
            return PRIOR_NEW if request.processors.active or request.temperature >= _NEW_FROM else PRIOR
        return self._rates.at(request.temperature, request.processors.active).lookup

    def _chain(self, request: Request, growth: Growth, least: int) -> TokenTree:
        tree = TokenTree.root(request.committed[-1])
        tokens, steps = self._lookups[request].propose(request.committed, most_levels(request, growth), least)
        if not tokens:
            return tree
        log_probs = [*accumulate(steps)]
        # Path probabilities fall along a chain, so what is kept is its beginning.
        kept = sum(growth.children(tree, log_probs, []))
        return tree.extend(range(kept), tokens[:kept], log_probs[:kept]) if kept else tree


class Lookup:
    """What is looked up in one request's text, and how far it is trusted: `rates` at first, then what it sees."""

    def __init__(self, rates: Sequence[float] = PRIOR, candidates: int = _CANDIDATES) -> None:
        self._candidates = candidates
        self._confidence = Confidence(rates)
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._indexed = 0
        self.matched = 0
        self._proposed: list[int] = []
        self._proposed_at = 0

    def propose(self, committed: Sequence[int], limit: int, least: int = 1) -> tuple[list[int], list[float]]:
        """Tokens and step log-probabilities, at most `limit`, of the chain that follows `committed`.

        None behind a match of fewer than `least` tokens.
        """
        self._learn(committed)
        self._index(committed)
        self.matched, source = self._longest_match(committed, least)
        self._proposed_at = len(committed)
        if self.matched < least:
            self._proposed = []
            return [], []
        # A match that reaches the end of the text is a cycle: go around it.
        self._proposed = [*islice(cycle(committed[source:]), limit)]
        steps = self._confidence.steps(self.matched, len(self._proposed))
        return self._proposed, [math.log(max(LEAST, step)) for step in steps]

    def _learn(self, committed: Sequence[int]) -> None:
        # Scored against what was committed, verified or not, so that a distrusted bucket can recover.
        for i, (proposed, token) in enumerate(zip(self._proposed, committed[self._proposed_at :], strict=False)):
            self._confidence.observe(self.matched + i, proposed == token)
            if proposed != token:
                break

    def _index(self, committed: Sequence[int]) -> None:
        # Not the n-grams that end with the text itself: they would match themselves.
        for end in range(max(self._indexed, 1), len(committed)):
            self._ends.setdefault((committed[end - 1],), []).append(end)
            if end > 1:
                self._ends.setdefault((committed[end - 2], committed[end - 1]), []).append(end)
        self._indexed = max(self._indexed, len(committed))

    def _longest_match(self, committed: Sequence[int], least: int) -> tuple[int, int]:
        """(length of the longest earlier match of the text's end, where its continuation begins); the latest wins.

        (0, 0) where there is none of `least` tokens.
        """
        last = len(committed)
        found = self._ends.get((committed[-2], committed[-1])) if last > 1 else None
        if not found and least > 1:
            return 0, 0
        found = found or self._ends.get((committed[-1],)) or []
        best, source = 0, 0
        for end in reversed(found[-self._candidates :]):
            length = 1
            while length < min(end, _LONGEST_MATCH) and committed[end - 1 - length] == committed[last - 1 - length]:
                length += 1
            if length > best:
                best, source = length, end
        return best, source


def rates(
    continuations: Sequence[tuple[list[int], list[int]]], temperature: float = 0, processed: bool = False
) -> list[float]:
    """How often proposals were right in each bucket on (prompt, output) pairs, drawn to what is known of such text.

    It was drawn at `temperature` (0: greedy), or logits were `processed`. Every chain is followed to its first miss,
    and the next one begins behind that, as in decoding.
    """
    known = PRIOR_NEW if processed or temperature >= _NEW_FROM else PRIOR
    right, seen = [_WEIGHT * rate for rate in known], [_WEIGHT] * len(known)
    for prompt, output in continuations:
        lookup, text, at = Lookup(), [*prompt, *output], len(prompt) + 1
        while at < len(text):
            tokens, _ = lookup.propose(text[:at], len(text) - at)
            accepted = 0
            for proposed, token in zip(tokens, text[at:], strict=False):
                place = bucket(lookup.matched + accepted)
                seen[place] += 1
                if proposed != token:
                    break
                right[place] += 1
                accepted += 1
            at += accepted + 1
    return [round(r / n, 4) for r, n in zip(right, seen, strict=True)]
