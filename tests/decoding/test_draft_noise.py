"""By whatever noise is drafted: agreement gives autoregressive sampling's tokens, traversal their distribution."""

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch

from dynatree import plugins
from dynatree.decoding import build
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.sampling import Warpers
from dynatree.measuring.audit import audit
from tests import models
from tests.conftest import Build, Drafts
from tests.decoding.test_exactness import PROMPT, TREES, reference
from tests.decoding.test_sampling import sample
from tests.generation.test_sampling import too_far

WAYS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3, "seed": 5},
    {"temperature": 1.6, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 6, "min_p": 0.02, "repetition_penalty": 1.3},
    {"temperature": 0},
]
# Those whose probabilities are not calibrated, and that have a drafter model.
RANKED = [name for name in TREES if name not in ("lookup", "cost aware", "priced successors")]
DRAWN = {"draft_noise": "independent", "verification": "traversal"}
TRAVERSED = ["chain", "fixed", "threshold", "budget 1", "budget 0", "depth 0", "whole vocabulary"]


def decoder(model: LanguageModel, helper: DraftModel, tree: str, **more: Any) -> Any:
    """The decoder `speculative` with the knobs of that name in TREES, and `more`."""
    return build(model, helper, "speculative", TREES[tree] | more, models.calibration())


@pytest.fixture(scope="module")
def plain(target: Build) -> list[list[int]]:
    """What autoregressive sampling gives in each of WAYS."""
    return [sample("autoregressive", target(), None, [*PROMPT], 24, **way).output for way in WAYS]


@pytest.mark.parametrize("noise", ["shared", "independent", "none"])
@pytest.mark.parametrize("tree", RANKED)
def test_agreement_gives_the_tokens_of_plain_sampling(
    target: Build, drafter: Drafts, plain: list[list[int]], tree: str, noise: str
) -> None:
    """Guards against noise of the draft that reaches the output, for drafters that are right often and never."""
    for kind in ("related", "wrong")[: 1 + (noise == "independent")]:
        made = decoder(target(), drafter(kind), tree, draft_noise=noise)
        assert made.shared_noise
        for way, output in zip(WAYS, plain, strict=True):
            assert made.decode([*PROMPT], models.wanted(24, do_sample=True, **way)).output == output, (kind, way)


def test_each_noise_drafts_other_trees(target: Build, drafter: Drafts) -> None:
    """Guards against a knob that changes nothing, and against independent drafts that are the likeliest ones."""
    trees = []
    for noise in ("shared", "independent", "none"):
        made = decoder(target(), drafter("related"), "fixed", draft_noise=noise)
        trace = made.decode([*PROMPT], models.wanted(24, do_sample=True))
        trees.append(trace.rounds[0].tree)
    assert all(one["tokens"] != other["tokens"] for one, other in ((trees[0], trees[1]), (trees[1], trees[2])))
    assert trees[0]["tokens"] != trees[2]["tokens"]
    # Without noise the first child is the likeliest; what is stated of a drawn one is its probability, too.
    assert trees[2]["log_probs"][1] >= trees[2]["log_probs"][2]
    assert trees[1]["log_probs"][1] <= trees[2]["log_probs"][1]


@pytest.mark.parametrize("tree", TRAVERSED)
def test_traversal_is_reproducible_alone_and_in_a_batch(target: Build, drafter: Drafts, tree: str) -> None:
    """Guards against random numbers that depend on what is decoded besides, or that another seed shares."""
    made = decoder(target(), drafter("related"), tree, **DRAWN)
    asked = models.wanted(24, do_sample=True, temperature=1.1, seed=5)
    alone = [made.decode([*PROMPT], asked.keyed([key])).output for key in (0, 3)]
    assert alone[0] != alone[1] and made.decode([*PROMPT], asked).output == alone[0]
    assert made.decode([*PROMPT], models.wanted(24, do_sample=True, temperature=1.1, seed=6)).output != alone[0]
    together = made.decode_batch([[*PROMPT], [2, 7], [*PROMPT]], asked.keyed([0, 0, 3]))
    assert [together[0].output, together[2].output] == alone


@pytest.mark.parametrize("tree", TRAVERSED)
def test_traversal_at_temperature_0_is_greedy(target: Build, drafter: Drafts, tree: str) -> None:
    """Guards greedy decoding, and the limits in which one token alone is left."""
    made, expected = decoder(target(), drafter("related"), tree, **DRAWN), reference(target(), PROMPT, 20)
    for way in ({}, {"do_sample": True, "temperature": 0}, {"do_sample": True, "top_k": 1}):
        assert made.decode([*PROMPT], models.wanted(20, **way)).output == expected, way


def test_traversal_accepts_all_of_a_drafter_that_is_the_target(target: Build, drafter: Drafts) -> None:
    """Guards the draft's distribution: with any other than that of its draws it would reject."""
    made = decoder(target(), drafter("same"), "chain", **DRAWN)
    trace = made.decode([*PROMPT], models.wanted(41, do_sample=True, temperature=0.8))
    assert [round_.accepted for round_ in trace.rounds] == [4] * 8


def test_a_text_by_traversal_is_not_compared_token_for_token(target: Build, drafter: Drafts) -> None:
    """Guards the audit: as of transformers' methods, nothing but perplexity is told of such a text."""
    made, asked = decoder(target(), drafter("related"), "fixed", **DRAWN), models.wanted(24, do_sample=True)
    output = made.decode([*PROMPT], asked).output
    assert not made.shared_noise
    assert output != sample("autoregressive", target(), None, [*PROMPT], 24).output
    facts = audit(target(), [*PROMPT], output, 1e-6, asked, made.shared_noise)
    assert facts["flips"] is facts["largest_gap"] is None and facts["perplexity"] > 1


LENGTH, SIZE = 4, 3


@pytest.mark.parametrize(("tree", "known"), [("fixed", [0, 2]), ("threshold", None)])
def test_traversal_has_the_distribution_of_plain_sampling(tree: str, known: list[int] | None) -> None:
    """Guards losslessness of the whole decoder: model, warpers, rounds, trees that are cut, a draft vocabulary."""
    model = models.language_model(vocab_size=SIZE)
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(0.4)
    helper = models.related(model, noise=0.5)
    helper = DraftModel(helper.language_model, torch.tensor(known)) if known else helper
    prompt, asked = [1, 0, 2], {"temperature": 0.9, "top_p": 0.97}

    def probability(text: tuple[int, ...]) -> float:
        steps = torch.log_softmax(Warpers(**asked).warped(model.score(torch.tensor([*prompt, *text[:-1]]), LENGTH)), -1)
        return float(steps[range(LENGTH), list(text)].sum().exp())

    every = {text: probability(text) for text in product(range(SIZE), repeat=LENGTH)}
    knobs = {"fixed": {"depth": 2, "branch": 2, "budget": 5}, "threshold": TREES["threshold"] | {"budget": 3}}[tree]
    made = build(model, helper, "speculative", {"policy": tree, **knobs, **DRAWN})
    options, counts = models.wanted(LENGTH, do_sample=True, seed=3, **asked), Counter[tuple[int, ...]]()
    accepted = 0
    for start in range(0, 2000, 500):
        for trace in made.decode_batch([prompt] * 500, options.keyed(range(start, start + 500))):
            counts[tuple(trace.output)] += 1
            accepted += sum(round_.accepted for round_ in trace.rounds)
    assert accepted > 1000
    assert not too_far(counts, {text: p for text, p in every.items() if p})


@pytest.mark.parametrize(
    ("tree", "knobs", "told"),
    [
        ("fixed", {"draft_noise": "own"}, "'shared', 'independent' or 'none'"),
        ("fixed", {"verification": "leaves"}, "'agreement' or 'traversal'"),
        (
            "lookup",
            {"draft_noise": "none"},
            "draft_noise: none; it is of a drafter model, and drafting: lookup has none",
        ),
        ("cost aware", {"draft_noise": "none"}, "policy cost_aware goes by probabilities measured with shared noise"),
        ("fixed", {"verification": "traversal"}, "draft_noise: shared; .* write draft_noise: independent"),
        ("fixed", DRAWN | {"draft_noise": "none"}, "draft_noise: none; .* write draft_noise: independent"),
        ("hybrid", DRAWN, "drafting: hybrid; .* write drafting: model"),
        ("lookup", {"verification": "traversal"}, "drafting: lookup; .* write drafting: model"),
        ("confidence", DRAWN, "policy: confidence; .* choose one of chain, fixed, threshold"),
        ("uncalibrated", DRAWN, "policy: cost_aware; .* choose one of chain, fixed, threshold"),
    ],
)
def test_what_cannot_be_is_refused(target: Build, drafter: Drafts, tree: str, knobs: dict[str, Any], told: str) -> None:
    """Guards against a combination that would silently give texts of another distribution, or ablate nothing."""
    with pytest.raises(UserError, match=told):
        decoder(target(), drafter("related"), tree, **knobs)
    with pytest.raises(ValueError, match=told):
        plugins.load("decoding", "speculative").Decoder.check(TREES[tree] | knobs)
