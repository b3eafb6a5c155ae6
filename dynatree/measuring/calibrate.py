"""Measures a pair on a machine: seconds of forwards (forward_times.py), and how often drafted tokens are right."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, cycle, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynatree import decoding
from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import BatchCosts, CostTable
from dynatree.costs.step_rates import SampledRates, StepRates, log_odds
from dynatree.drafting import lookup, successors
from dynatree.drafting.model import first_seen
from dynatree.engine import checkpoint, kept
from dynatree.engine.backend import NO_STATES, Feed
from dynatree.engine.compatibility import last_layer, pair_up
from dynatree.engine.context import InContext
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.engine.machine import describe_machine
from dynatree.engine.successors import Successors
from dynatree.errors import UserError
from dynatree.generation.options import GREEDY, GenerationOptions
from dynatree.generation.trace import Clock
from dynatree.measuring import forward_times, phases
from dynatree.measuring.calibration_methods import CONTINUING, DECODING, LOOKING
from dynatree.measuring.clock import alone
from dynatree.measuring.progress import Tell, lines
from dynatree.tree import TokenTree

# Ranks whose rate of hits is told.
RATED = 8

# Requests that are decoded together to see what looking takes, and tokens of each.
_TOGETHER, _LOOKED = 4, 32
# Seconds of looking at which requests rest from their first round on.
_TOO_DEAR = 1e6
# Nodes up to which a forward is compared with its like: most trees of new text have no more.
_NEAR = 7
PENALISED = GenerationOptions(max_new_tokens=1, repetition_penalty=1.2)
# Not by the seed that is taken unless another is given: what is tuned on is not what is measured.
SAMPLED = [GenerationOptions(max_new_tokens=1, do_sample=True, temperature=t, seed=2**32) for t in (0.7, 1.0)]
KINDS = (GREEDY, PENALISED, *SAMPLED)
# Tokens at which a drafter is taken to be right as often as it says, besides those that were seen.
_BORNE_OUT = 200
Continuations = Sequence[tuple[list[int], list[int]]]
# Of each of `KINDS` its (prompt, output) pairs; the place of a pair is its request key.
Texts = Mapping[GenerationOptions, Continuations]


def pair(
    folders: dict[str, Path],
    prompts: Sequence[list[int]],
    output_tokens: int,
    contexts: Sequence[int],
    repeats: int,
    dtype: str,
    device: str,
    rates: StepRates | None = None,
) -> Calibration:
    """What forwards of this pair cost here, and how often drafted tokens are right in continuations of `prompts`.

    `folders` as for `loading.load`; sizes as for `forward_times.costs`. `rates`: those of the pair in another format,
    whose text is all but the same; they are not measured then. Raises UserError for a pair that does not fit.
    """
    fingerprints = checkpoint.fingerprints(folders)
    models = kept.pair(folders, dtype, device)
    machine = describe_machine(dtype, device)
    return loaded(models, fingerprints, prompts, output_tokens, contexts, repeats, machine, rates=rates)


def loaded(
    models: checkpoint.Pair,
    fingerprints: dict[str, str],
    prompts: Sequence[list[int]],
    output_tokens: int,
    contexts: Sequence[int],
    repeats: int,
    machine: dict[str, Any],
    tell: Tell = lines,
    rates: StepRates | None = None,
) -> Calibration:
    """The same of loaded `models` with these `fingerprints`, on the `machine` as it is described.

    `tell` hears of each of the `steps` that is done. `rates`: what is known already of how often tokens are right.
    """
    target, drafter = models
    if drafter:
        pair_up(target, drafter)
        longest, limit = max(map(len, prompts)), drafter.context_limit
        if drafter.window is None and limit is not None and longest > limit:
            raise UserError(f"prompts of {longest} tokens: {drafter.name} has a context of {limit}; take shorter ones")
    decoder = decoding.build(target, None, "speculative", CONTINUING)
    # Continuations are not timed, but would slow down a job that is.
    with alone(), target.threads():
        target.prepare()
        if drafter:
            drafter.prepare()

        def continued(key: int, prompt: list[int], kind: GenerationOptions) -> tuple[list[int], list[int]]:
            output = decoder.decode(prompt, lasting(kind, output_tokens).keyed([key])).output
            tell(f"{target.name} went on for {len(output)} tokens")
            return prompt, output

        if rates is None:
            texts = {kind: [continued(key, prompt, kind) for key, prompt in enumerate(prompts)] for kind in KINDS}
            rates = step_rates(texts, drafter, target)
        earlier = list[_Watched]()

        def watch(table: CostTable) -> None:
            if drafter:
                earlier.append(_watched(target, drafter, prompts, Calibration(table, rates)))

        table = forward_times.costs(target, drafter, contexts, repeats, machine, fingerprints, tell, watch)
        watch(table)
        if drafter:
            beyond = while_decoding(target, drafter, prompts, output_tokens, table, tell)
            table = table.drafting_plus(beyond)
            table = in_decoding(target, drafter, prompts, Calibration(table, rates), earlier)
    return Calibration(table, rates)


def steps(models: checkpoint.Pair, prompts: Sequence[list[int]], contexts: Sequence[int]) -> int:
    """How often `loaded` tells."""
    return len(prompts) * (len(KINDS) + (1 if models.drafter else 0)) + forward_times.steps(*models, contexts)


def lasting(kind: GenerationOptions, max_new_tokens: int) -> GenerationOptions:
    """So many tokens of this kind."""
    return kind.model_copy(update={"max_new_tokens": max_new_tokens})


def while_decoding(
    target: LanguageModel,
    drafter: DraftModel,
    prompts: Sequence[list[int]],
    output_tokens: int,
    costs: CostTable,
    tell: Tell = lines,
) -> float:
    """Median seconds that a level takes in decoding beyond what `costs` say of as many tokens fed, at least 0.

    Between two target forwards the drafter's weights leave the processor's caches. Decoded are texts that do not loop,
    as those are for which a level is drafted.
    """
    decoder = decoding.build(target, drafter, "speculative", DECODING)
    assert costs.draft is not None, "the table has the drafter's costs"
    beyond: list[float] = []
    for prompt in prompts:
        trace = decoder.decode(prompt, lasting(PENALISED, output_tokens), clock=Clock(instrumented=True))
        taken = {number: end - start for number, phase, start, end in trace.spans if phase == "draft"}
        context = len(prompt)
        for number, (before, fact) in enumerate(pairwise(trace.rounds), 1):
            context += len(before.emitted)
            if fact.draft_forwards:
                # What the round before emitted has not been fed; before the first one the whole prompt had not.
                fed = len(before.emitted)
                beyond.append(taken[number] - float(costs.draft.at(context, fed)[fed]))
        tell(f"{target.name} and {drafter.name} decoded {len(trace.output)} tokens")
    return max(0.0, statistics.median(beyond or [0.0]))


class _Round(NamedTuple):
    """A round without levels: the most nodes of a tree, tokens before it, seconds of its forward and before that."""

    nodes: int
    context: int
    forward: float
    beside: float


# Of each text that was decoded.
_Rounds = list[list[_Round]]


class _Watched(NamedTuple):
    """Rounds of one request, of one whose tokens are drawn and of several together, at rest and where nodes were looked
    for, all of one moment.
    """

    at_rest: _Rounds
    looked: _Rounds
    drawn_at_rest: _Rounds
    drawn_looked: _Rounds
    all_at_rest: _Rounds
    all_looked: _Rounds


def _watched(
    target: LanguageModel, drafter: DraftModel, prompts: Sequence[list[int]], calibration: Calibration
) -> _Watched:
    """Some `prompts` decoded, a few seconds: what is seen is of the state in which the machine is."""
    together = [*islice(cycle(prompts), _TOGETHER)]
    found = _Watched(*([] for _ in _Watched._fields))
    alone: list[tuple[GenerationOptions, _Rounds, _Rounds]] = [
        (PENALISED, found.at_rest, found.looked),
        (SAMPLED[-1], found.drawn_at_rest, found.drawn_looked),
    ]
    # By turns, so that a slow spell hits all.
    for prompts_of, kind, *both in (
        *(([prompt], *kind) for prompt in prompts[:_TOGETHER] for kind in alone),
        (together, PENALISED, found.all_at_rest, found.all_looked),
    ):
        for price, rounds in zip((_TOO_DEAR, 0), both, strict=True):
            rounds.append(_rounds(target, drafter, prompts_of, kind, calibration, price))
    return found


def in_decoding(
    target: LanguageModel,
    drafter: DraftModel,
    prompts: Sequence[list[int]],
    calibration: Calibration,
    earlier: Sequence[_Watched] = (),
) -> CostTable:
    """The costs of `calibration` with what rounds take in decoding, on text that does not loop.

    Forwards take more than in a tight loop behind a round's own work, and among others of other sizes; those over one
    token take less, behind many of their like. A round takes `beside` more, and where nodes are looked for, `looking`:
    below one root, and below each further one of a batch, whose turn finds code and data in the processor's caches.
    Where tokens are drawn, both take more (`drawing`).
    What was seen `earlier` counts as much, and of each text its median: a machine that is slow for a while, which is to
    say for all rounds of a text, is seen as it mostly is.
    """

    def mostly(found: Iterable[Sequence[float]]) -> float:
        return statistics.median([statistics.median(some) for some in found if some] or [0.0])

    def beside(texts: _Rounds) -> float:
        return mostly([one.beside for one in rounds] for rounds in texts)

    def beyond(texts: _Rounds, fewest: int, most: int) -> float:
        expected = calibration.costs.verify
        return mostly(
            [
                one.forward - float(expected.at(one.context, 1 + one.nodes)[-1])
                for one in rounds
                if fewest <= one.nodes <= most
            ]
            for rounds in texts
        )

    moments = zip(*earlier, _watched(target, drafter, prompts, calibration), strict=True)
    at_rest, looked, drawn_rest, drawn, all_rest, all_looked = ([*chain.from_iterable(rounds)] for rounds in moments)
    first = max(0.0, beside(looked) - beside(at_rest))
    further = (beside(all_looked) - beside(all_rest) - first) / (_TOGETHER - 1)
    drawing = beside(drawn_rest) - beside(at_rest), beside(drawn) - beside(drawn_rest) - first
    costs = calibration.costs
    return costs.model_copy(
        update={
            "verify": costs.verify.beyond(beyond(at_rest + drawn_rest, 0, 0), beyond(looked + drawn, 1, _NEAR)),
            "beside": beside(at_rest),
            "looking": (first, max(0.0, further)),
            "drawing": tuple(max(0.0, more) for more in drawing),
        }
    )


def _rounds(
    target: LanguageModel,
    drafter: DraftModel,
    prompts: Sequence[list[int]],
    kind: GenerationOptions,
    calibration: Calibration,
    price: float,
) -> list[_Round]:
    """The rounds without levels in which all `prompts` are decoded, to text of this `kind`, where looking is taken to
    cost `price`.
    """
    costs = calibration.costs
    # Batches are measured later: as if theirs took as long.
    shared = [BatchCosts(rows=_TOGETHER, verify=costs.verify, draft=costs.draft)]
    known = costs.model_copy(update={"batches": shared, "looking": (price, price), "drawing": (0.0, 0.0)})
    decoder = decoding.build(target, drafter, "speculative", LOOKING, calibration._replace(costs=known))
    clock = Clock()
    with phases.forwards([target], clock) as spans:
        traces = decoding.decode_together(decoder, prompts, lasting(kind, _LOOKED), clock)
    # Of each prompt there is a forward before the first round.
    spans, context, found = spans[len(prompts) :], len(prompts[0]), list[_Round]()
    for (_, before), (begin, end), *facts in zip(
        spans, spans[1:], *(trace.rounds[1:] for trace in traces), strict=False
    ):
        context += len(facts[0].emitted)
        if not any(fact.draft_forwards for fact in facts):
            found.append(_Round(max(fact.drafted for fact in facts), context, end - begin, begin - before))
    return found


def step_rates(texts: Texts, drafter: DraftModel | None, target: LanguageModel | None = None) -> StepRates:
    """Fitted on what the target continued, of each kind; without a `drafter` only lookup's rates are.

    A drafter that reads is asked behind the `target`'s states: below a tree's first level it is right less often.

    The ranks' curves of greedy text are fitted on penalised text as well: in loops a drafter is right and sure of it,
    but what it is asked for is the rest. There a short match of lookup's is right half as often.
    """
    greedy, new = texts[GREEDY], texts[PENALISED]
    found = {kind: hits(drafter, pairs, kind, target) for kind, pairs in texts.items()} if drafter else {}
    return StepRates(
        ranks=fit_ranks(*_joined(found[GREEDY], found[PENALISED])) if found else NO_RANKS,
        rates=_rates(found.get(GREEDY)),
        rates_processed=_rates(found.get(PENALISED)),
        lookup=lookup.rates(greedy),
        lookup_processed=lookup.rates(new, processed=True),
        successors=_successor_ranks(drafter, target, texts, GREEDY, PENALISED),
        sampled=[
            SampledRates(
                temperature=kind.temperature,
                ranks=fit_ranks(*_joined(found[kind])) if found else NO_RANKS,
                rates=_rates(found.get(kind)),
                lookup=lookup.rates(texts[kind], kind.temperature),
                successors=_successor_ranks(drafter, target, texts, kind),
            )
            for kind in SAMPLED
        ],
    )


NO_RANKS = [(0.0, 1.0)]


def _rates(found: tuple[Tensor, Tensor] | None) -> list[float]:
    """How often each rank was right, by what `hits` found."""
    return [0.0] if found is None else [round(rate, 4) for rate in found[1].float().mean(0).tolist()]


def _successor_ranks(
    drafter: DraftModel | None, target: LanguageModel | None, texts: Texts, *kinds: GenerationOptions
) -> list[tuple[float, float]]:
    """Curves of the children that the `drafter`'s table has along the outputs of these `kinds`; none without one."""
    if drafter is None or drafter.successors is None:
        return []
    table, context = drafter.successors, drafter.in_context
    return fit_ranks(*_joined(*(followed(table, texts[kind], kind, target, context) for kind in kinds)))


@torch.inference_mode()
def followed(
    table: Successors,
    pairs: Continuations,
    kind: GenerationOptions,
    target: LanguageModel | None = None,
    context: InContext | None = None,
) -> tuple[Tensor, Tensor]:
    """As `teacher_forced`, of all of `pairs`, what a table of successors says that learns from the `target`, if any,
    and by its `context` reads its states."""
    stated, right = [], []
    for key, (prompt, output) in enumerate(pairs):
        options = kind.keyed([key])
        follower = successors.Follower(table, None, options.processors, options.sampler(), context)
        fed = torch.tensor([*prompt, *output[:-1]])
        logits = None if target is None else target.score(fed, len(output))
        layers = last_layer(target) if target and context else ()
        states = target.states(fed, layers) if target and layers else NO_STATES
        for place, token in enumerate(output):
            # As in decoding, where the prompt's last token is not one of a tree.
            if logits is not None and place > 1:
                follower.learn(output[place - 2], logits[place - 1].float().cpu().numpy())
            # Behind the token before the root.
            follower.read(states[: len(prompt) + place - 1])
            children = follower.begin([*prompt, *output[:place]], forward_times.RANKS)
            stated.append([step for _, step in children])
            right.append([child == token for child, _ in children])
    return torch.tensor(stated), torch.tensor(right)


def hits(
    drafter: DraftModel, pairs: Continuations, kind: GenerationOptions, target: LanguageModel | None = None
) -> tuple[Tensor, Tensor]:
    """What `teacher_forced` tells of all of `pairs`."""
    every = [teacher_forced(drafter, *pair, kind.keyed([key]), target) for key, pair in enumerate(pairs)]
    stated, right = (torch.cat(part) for part in zip(*every, strict=True))
    return stated, right


def _joined(*found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of the ranks that have curves."""
    stated, right = (torch.cat(part)[:, : forward_times.RANKS] for part in zip(*found, strict=True))
    return stated, right


@torch.inference_mode()
def teacher_forced(
    drafter: DraftModel,
    prompt: list[int],
    output: list[int],
    kind: GenerationOptions = GREEDY,
    target: LanguageModel | None = None,
) -> tuple[Tensor, Tensor]:
    """Of each token of `output`: the drafter's best log-probabilities [n, b] there, and which rank it had [n, b].

    Of a drawn output they are by the noise that it was drawn with. `target`: for a drafter that reads its states, which
    drafts nothing behind a text of one token.
    """
    # A row takes the state of the position before it, and the first token has none.
    first = 1 if drafter.reads else 0
    if len(prompt) == first:
        prompt, output = [*prompt, *output[:1]], output[1:]
    fed, window = torch.tensor([*prompt, *output[:-1]]), drafter.window
    if window is None and drafter.context_limit is not None:
        fed = fed[: drafter.context_limit]
    begin, committed = first, len(prompt)
    fused = None
    if drafter.reads:
        assert target is not None, "a drafter that reads is followed along its target's states"
        fused = drafter.fused(target.states(fed, drafter.reads))
    pieces: list[Tensor] = []
    # Once at least: of a prompt beyond the drafter's context there is nothing, but of the right shape.
    while committed <= len(fed) or not pieces:
        begin = first_seen(window, committed, begin)
        end = len(fed) if window is None else min(len(fed), begin + window)
        before = None if fused is None else fused[begin - 1 : end - 1]
        (found,) = drafter.draft_batch([Feed(fed[begin:end], drafter.new_caches(1)[0], states=before)])
        pieces.append(found.logits[committed - 1 - begin :])
        committed = end + 1
    logits = torch.cat(pieces)
    followed = fed[len(prompt) :].tolist()
    path = TokenTree.root(prompt[-1]).chain(followed, [0.0] * len(followed))
    logits = kind.processors.process(logits, fed[: len(prompt)], path, columns=drafter.columns)
    if sampler := kind.sampler():
        places = range(len(prompt), len(prompt) + len(logits))
        logits = sampler.perturbed(logits, places, drafter.vocabulary, drafter.vocabulary_size)
    best = torch.log_softmax(logits.float(), dim=-1).topk(min(RATED, logits.shape[-1]), dim=-1)
    tokens = drafter.token_ids(best.indices.cpu())
    return best.values.cpu(), tokens == torch.tensor(output)[: len(tokens), None]


def fit_ranks(stated: Tensor, hits: Tensor) -> list[tuple[float, float]]:
    """A curve a rank from stated log-probabilities [n, b] and whether each was the target's choice [n, b].

    Drawn to what the drafter says, as by `_BORNE_OUT` more tokens at which that was borne out: without them a curve
    fits the few hits of a low rank, or the loops of one prompt. A slope is never negative.
    """
    # Imported late: it takes a second, and who only decodes fits nothing.
    from sklearn.linear_model import LogisticRegression

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
