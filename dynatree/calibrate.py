"""Measures a machine and a pair: seconds of forwards, and how often drafted tokens are right on tuning text."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dynatree import loading, measure, model, provenance
from dynatree.batch import Feed
from dynatree.cache import KeyValueCache
from dynatree.calibration import Calibration, StepCalibration, log_odds
from dynatree.cost import BatchCosts, CostTable, Curve
from dynatree.drafting import lookup
from dynatree.drafting.model import Drafter
from dynatree.errors import UserError
from dynatree.model import LanguageModel
from dynatree.processors import PLAIN, Processors
from dynatree.trace import Clock
from dynatree.tree import TokenTree
from dynatree.verification.greedy import verify

# New tokens of a target forward, and of a draft forward.
VERIFIED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
DRAFTED = (1, 2, 4, 8, 16, 32, 64, 128)
# The same, of each request, where several are decoded together.
BATCHED = (1, 2, 4, 8, 16, 32, 64)
# Ranks of the drafter's proposals that get a curve of their own.
RANKS = 4
# Ranks whose rate of hits is told.
RATED = 8
# Times that a level besides its forward is timed at least: it takes well below a millisecond.
LEAST_HANDLED = 20

# What decoding is watched with: DynaTree's default, on text that a penalty keeps from looping.
DECODING = {"policy": "cost_aware", "drafting": "hybrid", "depth": 63, "branch": 4, "threshold": 0.01, "budget": 63}
NEW_TEXT = Processors(repetition_penalty=1.2)
# Tokens at which a drafter is taken to be right as often as it says, besides those that were seen.
_BORNE_OUT = 200
Continuations = Sequence[tuple[list[int], list[int]]]

Step = Callable[[list[KeyValueCache], int], None]


class _Curves(TypedDict):
    verify: Curve
    draft: Curve | None


def pair(
    folders: dict[str, Path],
    prompts: Sequence[list[int]],
    output_tokens: int,
    contexts: Sequence[int],
    repeats: int,
    dtype: str,
    device: str,
    batches: Sequence[int] = (1,),
) -> Calibration:
    """What forwards of this pair cost here, and how often drafted tokens are right in continuations of `prompts`.

    `folders` as for `measure.load`; sizes as for `costs`. Raises UserError for a pair that does not fit.
    """
    loaded = loading.load_pair(folders, dtype, device)
    target, drafter = loaded["target"], loaded.get("drafter")
    if drafter:
        model.check_pair(target, drafter)
        longest, limit = max(map(len, prompts)), drafter.context_limit
        if limit is not None and longest > limit:
            raise UserError(f"prompts of {longest} tokens: {drafter.name} has a context of {limit}; take shorter ones")
    # Whichever way they are decoded.
    decoder = measure.build(target, None, "speculative", {"policy": "chain", "drafting": "lookup", "draft_tokens": 6})
    fingerprints = {role: loading.fingerprint(folder) for role, folder in folders.items()}
    # Continuations are not timed, but would slow down a job that is.
    with measure.alone():
        greedy, new = (
            [(prompt, decoder.decode(prompt, output_tokens, processors=processors).output) for prompt in prompts]
            for processors in (PLAIN, NEW_TEXT)
        )
        known = steps(greedy, drafter, new)
        table = costs(target, drafter, contexts, repeats, provenance.describe(dtype, device), fingerprints, batches)
        if drafter:
            beyond = while_decoding(target, drafter, prompts, output_tokens, Calibration(table, known))
            table = table.drafting_plus(beyond)
    return Calibration(table, known)


def costs(
    target: LanguageModel,
    drafter: LanguageModel | None,
    contexts: Sequence[int],
    repeats: int,
    machine: dict[str, Any],
    models: dict[str, str],
    batches: Sequence[int] = (1,),
) -> CostTable:
    """The cost table of this pair: every forward `repeats` times or more. Contexts beyond a model's own are left out.

    All is timed twice, minutes apart, and the smaller median of each size taken: where memory is slow for a while, by
    what else the machine does, wide forwards seem to be for nothing.
    `machine` and `models` (fingerprints) are kept with it. `batches`: numbers of requests at once; those above 1 are
    timed at the middle context alone, and up to as many tokens a forward as one request.
    """
    extra = _handling(drafter, _fitting(drafter, contexts)[0], max(repeats, LEAST_HANDLED)) if drafter else 0.0

    def curves(rows: int, behind: Sequence[int], verified: Sequence[int], drafted: Sequence[int]) -> _Curves:
        each = (repeats + 1) // 2
        verify = _curve(target, rows, verified, behind, each, partial(_verification, target))
        draft = _curve(drafter, rows, drafted, behind, each, partial(_level, drafter)) if drafter else None
        # Each row's tree is grown for itself.
        return {"verify": verify, "draft": draft and draft.plus(rows * extra)}

    def table() -> CostTable:
        alone = curves(1, contexts, VERIFIED, DRAFTED)
        fitting = sorted(_fitting(target, contexts))
        middle = [fitting[len(fitting) // 2]]
        together = []
        for rows in sorted({*batches} - {1}):
            sizes = [n for n in BATCHED if n <= BATCHED[1] or n * rows <= VERIFIED[-1]]
            together.append(BatchCosts(rows=rows, **curves(rows, middle, sizes, sizes)))
        return CostTable(machine=machine, models=models, **alone, batches=together)

    return table().least(table())


def _verification(target: LanguageModel, caches: list[KeyValueCache], n: int) -> None:
    lengths = [cache.length for cache in caches]
    tree = TokenTree.root(1).chain(torch.arange(n - 1) % target.vocabulary_size, torch.zeros(n - 1))
    feeds = [
        Feed(tree.tokens, cache, tree.positions(length), tree.attention_mask(length) if n > 1 else None)
        for cache, length in zip(caches, lengths, strict=True)
    ]
    for cache, length, logits in zip(caches, lengths, target.forward_batch(feeds), strict=True):
        verify(tree, logits)
        cache.crop(length)


def _level(drafter: LanguageModel, caches: list[KeyValueCache], n: int) -> None:
    lengths = [cache.length for cache in caches]
    drafter.draft_batch([Feed(torch.arange(n) % drafter.vocabulary_size, cache) for cache in caches])
    for cache, length in zip(caches, lengths, strict=True):
        cache.crop(length)


def _handling(drafter: LanguageModel, context: int, repeats: int) -> float:
    """Median seconds that a level takes besides its forward: calibrated, grafted into the tree, its cache kept."""
    plain = StepCalibration(ranks=[(0.0, 1.0)] * RANKS, rates=[0.0], lookup=[])
    drafting, committed, cache = Drafter(drafter, plain), [0] * context, KeyValueCache()
    drafter.forward(torch.zeros(context, dtype=torch.long), cache, last_only=True)
    root = torch.zeros(1, dtype=torch.long)

    def level() -> None:
        committed.append(0)
        drafting.free(committed, 0)
        tree = TokenTree.root(0)
        text = torch.zeros(len(committed), dtype=torch.long)
        logits = drafter.draft(*drafting.ask(tree, root, text))
        tokens, log_probs = drafting.answer(logits, tree, root, RANKS, text)
        tree.graft(root.repeat_interleave(tokens.shape[1]), tokens.flatten(), log_probs.flatten())
        drafting.accept(root)

    def forward() -> None:
        drafter.draft(root, cache)
        cache.crop(context)

    room = ((drafter.context_limit or 2**31) - context - 2) // 2
    whole, bare = _medians(drafter, [level, forward], max(1, min(repeats, room)))
    return max(0.0, whole - bare)


def while_decoding(
    target: LanguageModel,
    drafter: LanguageModel,
    prompts: Sequence[list[int]],
    output_tokens: int,
    calibration: Calibration,
) -> float:
    """Median seconds that a level takes in decoding beyond what the table says, at least 0.

    Between two target forwards the drafter's weights leave the processor's caches, and the policy thinks. Decoded are
    texts that do not loop: in loops hardly a level is drafted.
    """
    decoder = measure.build(target, drafter, "speculative", DECODING, calibration)
    draft = calibration.costs.draft
    beyond: dict[int, list[float]] = {}
    assert draft is not None, "the table has the drafter's costs"
    for prompt in prompts:
        trace = decoder.decode(prompt, output_tokens, clock=Clock(instrumented=True), processors=NEW_TEXT)
        taken = {number: end - start for number, phase, start, end in trace.spans if phase == "draft"}
        context = len(prompt)
        for number, fact in enumerate(trace.rounds):
            if fact.draft_forwards:
                level = taken[number] / fact.draft_forwards - float(draft.at(context, 1)[1])
                beyond.setdefault(fact.draft_forwards, []).append(level)
            context += len(fact.emitted)
    # Of the fewest levels, most often one, below the root alone: later ones are over more tokens.
    counted = beyond[min(beyond)] if beyond else [0.0]
    found = max(0.0, statistics.median(counted))
    rounds = len(counted) if beyond else 0
    print(f"calibrate: a level takes {1000 * found:.1f} ms more in decoding ({rounds} rounds)", file=sys.stderr)
    return found


def _fitting(model: LanguageModel, contexts: Sequence[int]) -> list[int]:
    return [context for context in contexts if model.context_limit is None or context + 2 <= model.context_limit] or [1]


def _curve(
    model: LanguageModel, rows: int, sizes: Sequence[int], contexts: Sequence[int], repeats: int, step: Step
) -> Curve:
    limit = model.context_limit or max(contexts) + max(sizes)
    fitting = _fitting(model, contexts)
    seconds: list[list[float]] = []
    for context in fitting:
        caches = KeyValueCache.together(rows)
        for row, cache in enumerate(caches):
            # Each shorter than the one before, as rows are.
            text = torch.arange(max(1, context - row)) % model.vocabulary_size
            model.forward(text, cache, last_only=True)
        within = [n for n in sizes if context + n <= limit]
        median = _medians(model, [partial(step, caches, n) for n in within], repeats)
        # Near the limit there is no room for the last sizes, but it stands for shorter contexts, too: they grow there
        # as behind the context before it, or by the token.
        shape = seconds[-1] if seconds else sizes
        last = len(within) - 1
        seconds.append(median + [median[-1] * shape[place] / shape[last] for place in range(last + 1, len(sizes))])
        what = model.name if rows == 1 else f"{model.name}, {rows} rows"
        print(f"calibrate: {what} at context {context}: {1000 * median[0]:.1f} ms a token", file=sys.stderr)
    return Curve(contexts=fitting, tokens=list(sizes), seconds=seconds)


def _medians(model: LanguageModel, steps: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Median seconds of each step of `model`; they take turns, so that a slow spell of the machine hits all alike.

    Each turn is two steps, of which the second counts: a plain step behind a forward over 128 tokens takes a tenth
    longer than behind one of its like, as in decoding.
    """
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for step, seconds in zip(steps, taken, strict=True):
            step()
            measure.synchronise(model.device)
            begin = time.perf_counter()
            step()
            measure.synchronise(model.device)
            seconds.append(time.perf_counter() - begin)
    return [statistics.median(seconds) for seconds in taken]


def steps(greedy: Continuations, drafter: LanguageModel | None, new: Continuations = ()) -> StepCalibration:
    """Fitted on the target's `greedy` (prompt, output) pairs; without a `drafter` only lookup's rates are.

    The ranks' curves are fitted on `new` as well, its greedy outputs under `NEW_TEXT`: in loops a drafter is right and
    sure of it, but what it is asked for is the rest. There a short match of lookup's is right half as often.
    """
    ranks, rates = [(0.0, 1.0)], [0.0]
    if drafter:
        found = [teacher_forced(drafter, *pair) for pair in greedy]
        rates = torch.cat([hits for _, hits in found]).float().mean(0).tolist()
        found += [teacher_forced(drafter, *pair, NEW_TEXT) for pair in new]
        stated, hits = (torch.cat(part)[:, :RANKS] for part in zip(*found, strict=True))
        ranks = fit_ranks(stated, hits)
    return StepCalibration(
        ranks=ranks,
        rates=[round(r, 4) for r in rates],
        lookup=lookup.rates(greedy),
        lookup_processed=lookup.rates(new) if new else [],
    )


@torch.inference_mode()
def teacher_forced(
    drafter: LanguageModel, prompt: list[int], output: list[int], processors: Processors = PLAIN
) -> tuple[Tensor, Tensor]:
    """Of each token of `output`: the drafter's best log-probabilities [n, b] there, and which rank it had [n, b]."""
    fed = torch.tensor([*prompt, *output[:-1]])
    if drafter.context_limit is not None:
        fed = fed[: drafter.context_limit]
    logits = drafter.draft(fed, KeyValueCache())[len(prompt) - 1 :]
    followed = fed[len(prompt) :]
    path = TokenTree.root(prompt[-1]).chain(followed, torch.zeros(len(followed)))
    logits = processors.process(logits, fed[: len(prompt)], path, columns=drafter.draft_columns)
    best = torch.log_softmax(logits.float(), dim=-1).topk(min(RATED, logits.shape[-1]), dim=-1)
    tokens = best.indices.cpu()
    if drafter.draft_vocabulary is not None:
        tokens = drafter.draft_vocabulary[tokens]
    return best.values.cpu(), tokens == torch.tensor(output)[: len(tokens), None]


def fit_ranks(stated: Tensor, hits: Tensor) -> list[tuple[float, float]]:
    """A curve a rank from stated log-probabilities [n, b] and whether each was the target's choice [n, b].

    Drawn to what the drafter says, as by `_BORNE_OUT` more tokens at which that was borne out: without them a curve
    fits the few hits of a low rank, or the loops of one prompt. A slope is never negative.
    """
    curves = []
    for rank in range(stated.shape[1]):
        odds, hit = log_odds(stated[:, rank]).double(), hits[:, rank].double()
        right, weight = torch.sigmoid(odds), _BORNE_OUT / len(odds)
        weights = torch.cat([torch.ones(len(odds)), weight * right, weight * (1 - right)])
        outcomes = torch.cat([hit, torch.ones(len(odds)), torch.zeros(len(odds))])
        # Without a penalty, which would draw the slope to 0.
        fitted = LogisticRegression(C=math.inf).fit(odds.repeat(3)[:, None].numpy(), outcomes.numpy(), weights.numpy())
        slope = float(fitted.coef_[0, 0])
        rate = (hit.sum() + _BORNE_OUT * right.mean()) / (len(hit) + _BORNE_OUT)
        intercept = float(fitted.intercept_[0]) if slope > 0 else float(torch.logit(rate))
        curves.append((round(intercept, 4), round(max(0.0, slope), 4)))
    return curves
