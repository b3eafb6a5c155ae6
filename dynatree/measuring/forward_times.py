"""Seconds of forwards on this machine, of one request and of several at once: what makes up a cost table."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch

from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import BatchCosts, CostTable, Curve, least
from dynatree.costs.step_rates import StepRates
from dynatree.drafting.model import Draft
from dynatree.engine import kept
from dynatree.engine.backend import NO_STATES, Cache, Feed
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.measuring.clock import alone, synchronise
from dynatree.measuring.progress import Tell, lines
from dynatree.tree import ROOT, TokenTree
from dynatree.verification.agreement import verify

# New tokens of a target forward, and of a draft forward.
VERIFIED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
DRAFTED = (1, 2, 4, 8, 16, 32, 64, 128)
# The same, of each request, where several are decoded together.
BATCHED = (1, 2, 4, 8, 16, 32, 64)
# Ranks of the drafter's proposals that get a curve of their own.
RANKS = 4
# Times that a level besides its forward is timed at least: it takes well below a millisecond.
LEAST_HANDLED = 20
# Up to so many new tokens, the forwards of its like before one that is timed: a forward over one token takes a third
# longer after one over 128 tokens than after three of its like, as in decoding.
_LIKE = {4: 3, 32: 1}
# Forwards over up to so many new tokens are timed so many times as often: most rounds on new text are such, and a tenth
# of one decides whether nodes pay.
_SMALL, _OFTEN = 8, 4
# Tokens of a forward that is timed behind so many over one, so often at least.
_FEW, _MANY, _SWITCHED = 4, 32, 5

Step = Callable[[list[Cache], int], None]


class _Curves(TypedDict):
    verify: Curve
    draft: Curve | None


def costs(
    target: LanguageModel,
    drafter: DraftModel | None,
    contexts: Sequence[int],
    repeats: int,
    machine: dict[str, Any],
    models: dict[str, str],
    tell: Tell = lines,
    meanwhile: Callable[[CostTable], None] = lambda table: None,
) -> CostTable:
    """The cost table of this pair: every forward `repeats` times or more. Contexts beyond a model's own are left out.

    All is timed twice, and the smaller median of each size taken: where memory is slow for a while, by what else the
    machine does, wide forwards seem to be for nothing. In between `meanwhile` is called with what is known by then.
    `machine` and `models` (fingerprints) are kept with it. `tell` hears of each context and model that is done.
    """
    handling = (
        _handling(drafter, _fitting(drafter.language_model, contexts)[0], max(repeats, LEAST_HANDLED))
        if drafter
        else 0.0
    )

    def table() -> CostTable:
        curves = _curves(target, drafter, 1, contexts, (VERIFIED, DRAFTED), repeats, handling, tell)
        return CostTable(machine=machine, models=models, **curves, handling=handling)

    reads, context = drafter.reads if drafter else (), _fitting(target, contexts)[0]

    def switch() -> float:
        return _switching(target, reads, context, max(repeats, _SWITCHED))

    before, first = switch(), table()
    meanwhile(first)
    return least(first, table()).model_copy(update={"switch": min(before, switch())})


def steps(target: LanguageModel, drafter: DraftModel | None, contexts: Sequence[int]) -> int:
    """How often `costs` tells."""
    return 2 * (
        len(_fitting(target, contexts))
        + len(_fitting(drafter.language_model, _seen(drafter, contexts)) if drafter else [])
    )


def batch_costs(
    target: LanguageModel,
    drafter: DraftModel | None,
    contexts: Sequence[int],
    repeats: int,
    batches: Sequence[int],
    known: CostTable,
) -> list[BatchCosts]:
    """The same of so many requests at once as each of `batches` above 1 says, in ascending order.

    They are timed at the middle context alone, and up to as many tokens a forward as one request; what a level takes
    besides its forward is that of `known`.
    """
    fitting = sorted(_fitting(target, contexts))
    middle = [fitting[(len(fitting) - 1) // 2]]

    def table(rows: int) -> BatchCosts:
        sizes = [n for n in BATCHED if n <= BATCHED[1] or n * rows <= VERIFIED[-1]]
        # Each row's tree is grown for itself.
        beside = rows * known.handling + known.surcharge
        return BatchCosts(rows=rows, **_curves(target, drafter, rows, middle, (sizes, sizes), repeats, beside))

    made = []
    for rows in sorted({*batches} - {1}):
        # Graphs for as many take long to make, and are not kept beside those for others.
        target.prepare(rows)
        if drafter:
            drafter.prepare(rows)
        made.append(least(table(rows), table(rows)))
    return made


def _curves(
    target: LanguageModel,
    drafter: DraftModel | None,
    rows: int,
    contexts: Sequence[int],
    sizes: tuple[Sequence[int], Sequence[int]],
    repeats: int,
    beside: float,
    tell: Tell = lines,
) -> _Curves:
    """Of forwards over `sizes` (target's, drafter's) new tokens a row; a level takes `beside` more seconds."""
    each = (repeats + 1) // 2
    verification = partial(_verification, target, drafter.reads if drafter else ())
    verify = _curve(target, rows, sizes[0], contexts, each, verification, tell)
    draft = None
    if drafter:
        seen = _seen(drafter, contexts)
        draft = _curve(drafter.language_model, rows, sizes[1], seen, each, partial(_level, drafter), tell)
    return {"verify": verify, "draft": draft and draft.plus(beside)}


def _seen(drafter: DraftModel, contexts: Sequence[int]) -> list[int]:
    """What the drafter sees of so many committed tokens: never more than its window."""
    return sorted({min(context, drafter.window or context) for context in contexts})


def _verification(target: LanguageModel, reads: Sequence[int], caches: list[Cache], n: int) -> None:
    lengths = [cache.length for cache in caches]
    tree = TokenTree.root(1).chain([place % target.vocabulary_size for place in range(n - 1)], [0.0] * (n - 1))
    feeds = [Feed(tree.tokens, cache, tree=tree if n > 1 else None) for cache in caches]
    # Lent, as in decoding: copies of logits would be taken for a part of what a node costs.
    for cache, length, output in zip(caches, lengths, target.forward_batch(feeds, reads=reads, lent=True), strict=True):
        verify(tree, output.logits)
        cache.crop(length)


def _switching(target: LanguageModel, reads: Sequence[int], context: int, repeats: int) -> float:
    """Seconds that a forward over a few tokens takes more behind many over one than behind its like."""
    caches = target.new_caches(1)
    target.forward(torch.arange(context) % target.vocabulary_size, caches[0], last=1)
    one, few = (partial(_verification, target, reads, caches, n) for n in (1, _FEW))
    pairs = [(_timed(target, [*[one] * _MANY, few]), _timed(target, [few] * _LIKE[_FEW])) for _ in range(repeats)]
    behind, among = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    return max(0.0, behind - among)


def _timed(model: LanguageModel, steps: Sequence[Callable[[], None]]) -> float:
    """Seconds of the last of `steps` of `model`."""
    for step in steps:
        synchronise(model.device)
        begin = time.perf_counter()
        step()
    synchronise(model.device)
    return time.perf_counter() - begin


def _level(drafter: DraftModel, caches: list[Cache], n: int) -> None:
    lengths = [cache.length for cache in caches]
    tokens = torch.arange(n) % drafter.vocabulary_size
    own = torch.ones(n, drafter.fusion.width, device=drafter.device) if drafter.fusion else None
    feeds = [Feed(tokens, cache, states=own) for cache in caches]
    drafter.draft_batch(feeds)
    for cache, length in zip(caches, lengths, strict=True):
        cache.crop(length)


def _handling(drafter: DraftModel, context: int, repeats: int) -> float:
    """Median seconds that a level takes besides its forward: calibrated, grafted into the tree, its cache kept."""
    plain = StepRates(ranks=[(0.0, 1.0)] * RANKS, rates=[0.0], lookup=[])
    drafted, cache = drafter.new_caches(1)[0], drafter.new_caches(1)[0]
    draft, committed = Draft(drafter, drafted, plain), [0] * context
    # As much as the target would give.
    width = len(drafter.reads) * drafter.fusion.width if drafter.fusion else 0
    states = torch.ones(context, width, device=drafter.device) if width else NO_STATES
    draft.begin(states)
    drafter.language_model.forward(torch.zeros(context, dtype=torch.long), cache, last=1)

    def level() -> None:
        committed.append(0)
        draft.begin_round(committed)
        tree = TokenTree.root(0)
        text = torch.zeros(len(committed), dtype=torch.long)
        (output,) = drafter.draft_batch([draft.draft_inputs(tree, [0], text)])
        (tokens,), (steps,) = draft.proposals(output, tree, [0], RANKS, text)
        tree.graft([0] * len(tokens), tokens, steps)
        draft.accept(ROOT, states[:1])

    def forward() -> None:
        drafter.draft(ROOT, cache)
        cache.crop(context)

    room = ((drafter.context_limit or 2**31) - context - 2) // 2
    whole, bare = _medians(drafter.language_model, [(level, 1, 1), (forward, 1, 1)], max(1, min(repeats, room)))
    return max(0.0, whole - bare)


def with_batches(
    folders: dict[str, Path],
    calibration: Calibration,
    contexts: Sequence[int],
    repeats: int,
    dtype: str,
    device: str,
    batches: Sequence[int],
) -> Calibration:
    """`calibration`, which `pair` gave for the same `folders`, with costs of as many requests at once as `batches` say.

    Those of one request are there already.
    """
    target, drafter = kept.pair(folders, dtype, device)
    with alone(), target.threads():
        found = batch_costs(target, drafter, contexts, repeats, batches, calibration.costs)
    return calibration._replace(costs=calibration.costs.model_copy(update={"batches": found}))


def _fitting(model: LanguageModel, contexts: Sequence[int]) -> list[int]:
    return [context for context in contexts if model.context_limit is None or context + 2 <= model.context_limit] or [1]


def _curve(
    model: LanguageModel,
    rows: int,
    sizes: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    step: Step,
    tell: Tell = lines,
) -> Curve:
    limit = model.context_limit or max(contexts) + max(sizes)
    fitting = _fitting(model, contexts)
    seconds: list[list[float]] = []
    for context in fitting:
        caches = model.new_caches(rows)
        for row, cache in enumerate(caches):
            # Each shorter than the one before, as rows are.
            text = torch.arange(max(1, context - row)) % model.vocabulary_size
            model.forward(text, cache, last=1)
        within = [n for n in sizes if context + n <= limit]
        median = _medians(model, [(partial(step, caches, n), _before(n), _times(rows * n)) for n in within], repeats)
        # Near the limit there is no room for the last sizes, but it stands for shorter contexts, too: they grow there
        # as behind the context before it, or by the token.
        shape = seconds[-1] if seconds else sizes
        last = len(within) - 1
        seconds.append(median + [median[-1] * shape[place] / shape[last] for place in range(last + 1, len(sizes))])
        what = model.name if rows == 1 else f"{model.name}, {rows} rows"
        tell(f"{what} at context {context}: {1000 * median[0]:.1f} ms a token")
    return Curve(contexts=fitting, tokens=list(sizes), seconds=seconds)


def _before(tokens: int) -> int:
    return next((count for most, count in _LIKE.items() if tokens <= most), 0)


def _times(tokens: int) -> int:
    return _OFTEN if tokens <= _SMALL else 1


def _medians(model: LanguageModel, steps: Sequence[tuple[Callable[[], None], int, int]], repeats: int) -> list[float]:
    """Median seconds of each step of `model`; they take turns, so that a slow spell of the machine hits all alike.

    Of each is told how often it is done before it is timed, and in how many turns of each of `repeats`.
    """
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for turn in range(max(times for _, _, times in steps)):
            for (step, before, times), seconds in zip(steps, taken, strict=True):
                if turn < times:
                    seconds.append(_timed(model, [step] * (before + 1)))
    return [statistics.median(seconds) for seconds in taken]
