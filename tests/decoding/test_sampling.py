"""The same seed gives the same tokens: every method of ours, token for token, what autoregressive sampling gives."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from dynatree import plugins
from dynatree.data.prompts import Prompt
from dynatree.decoding import speculative
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.sampling import DraftNoise, Sampler
from dynatree.generation.trace import Trace
from dynatree.measuring import calibrate, runs
from dynatree.measuring.audit import audit, records
from dynatree.tree import TokenTree
from dynatree.verification.agreement import verify
from tests import models
from tests.conftest import Build, Drafts
from tests.decoding.test_exactness import METHODS, PROMPT, TREES, reference

WAYS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.0, "seed": 9},
    {"temperature": 0.7, "top_p": 0.95},
    {"top_k": 5, "min_p": 0.02, "seed": 2**63},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "request_key": 4},
]


def sample(
    method: str, target: LanguageModel, drafter: DraftModel | None, prompt: list[int], count: int, **asked: Any
) -> Trace:
    """`count` drawn tokens by the method of that name in METHODS."""
    name, knobs = METHODS[method]
    decoder = plugins.load("decoding", name).Decoder(target, drafter, models.calibration(), **knobs)
    trace: Trace = decoder.decode(prompt, models.wanted(count, do_sample=True, **asked))
    return trace


@pytest.mark.parametrize("architecture", models.CONFIGS)
@pytest.mark.parametrize("kind", models.DRAFTERS)
def test_every_tree_draws_what_plain_sampling_draws(
    target: Build, drafter: Drafts, architecture: str, kind: str
) -> None:
    """Guards the promise itself, for drafters that are right always, often, seldom and never."""
    model = target(architecture)
    # In turn, so that every way meets most architectures and drafters; both that a drafter is often right in.
    place = list(models.CONFIGS).index(architecture) + 2 * list(models.DRAFTERS).index(kind)
    for way in (WAYS[place % len(WAYS)], WAYS[(place + 3) % len(WAYS)])[: 1 + (kind == "related")]:
        plain = sample("autoregressive", model, None, [*PROMPT], 16, **way)
        assert plain.target_forwards == 15
        for method in TREES:
            trace = sample(method, model, drafter(kind, architecture, torch.float64), [*PROMPT], 16, **way)
            assert trace.output == plain.output, (method, way)


def test_it_is_the_noise_that_decides(target: Build) -> None:
    """Guards against draws that are greedy after all, or the same for every seed, key or place in the text."""
    told = [{}, {"seed": 1}, {"seed": 2}, {"request_key": 1}, {"temperature": 0.9}]
    outputs = [tuple(sample("autoregressive", target(), None, [*PROMPT], 24, **way).output) for way in told]
    assert len(set(outputs)) == len(told)
    assert reference(target(), PROMPT, 24) not in map(list, outputs)
    again = sample("autoregressive", target(), None, [*PROMPT], 24)
    assert tuple(again.output) == outputs[0]
    # What is drawn depends on where it stands, not on where the prompt ended.
    longer = sample("autoregressive", target(), None, [*PROMPT, *outputs[0][:9]], 15)
    assert tuple(longer.output) == outputs[0][9:]


@pytest.mark.parametrize("method", TREES)
def test_one_token_left_and_temperature_to_0_are_greedy(target: Build, drafter: Drafts, method: str) -> None:
    """Guards the limits: the likeliest token alone, and a temperature at which noise decides nothing."""
    expected = reference(target(), PROMPT, 20)
    for way in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-3}, {"temperature": 0}):
        assert sample(method, target(), drafter("related"), [*PROMPT], 20, **way).output == expected, way


def test_the_target_as_its_own_drafter_is_always_right(target: Build, drafter: Drafts) -> None:
    """Guards against noise that draft and target do not share: then it would be right by chance alone."""
    for temperature in (0.3, 1.0, 2.0):
        trace = sample("chain", target(), drafter("same"), [*PROMPT], 41, temperature=temperature)
        assert all(round_.accepted == round_.drafted for round_ in trace.rounds)
        assert len(trace.rounds) == 8


def test_shared_noise_is_what_makes_a_drafter_right(target: Build, drafter: Drafts) -> None:
    """Guards the coupling: without it the output is the same, and fewer tokens are accepted."""
    made = {
        noise: plugins.load("decoding", "speculative")
        .Decoder(target(), drafter("related"), policy="chain", draft_tokens=4, draft_noise=noise)
        .decode([*PROMPT], models.wanted(80, do_sample=True))
        for noise in get_args(DraftNoise)
    }
    assert len({tuple(trace.output) for trace in made.values()}) == 1
    assert len(made["shared"].rounds) < 0.8 * min(len(made["none"].rounds), len(made["independent"].rounds))


@pytest.mark.parametrize("method", TREES)
def test_alone_and_in_a_batch(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against noise that is one for all rows, or of the row and not of its request."""
    prompts, way = [[*PROMPT], [2, 7], [*PROMPT], [1] * 12], {"temperature": 1.1, "seed": 5}
    name, knobs = METHODS[method]
    decoder = plugins.load("decoding", name).Decoder(target(), drafter("related"), models.calibration(), **knobs)
    keys = (0, 0, 3, 1)
    together = decoder.decode_batch(prompts, models.wanted(24, do_sample=True, request_key=keys, **way))
    for prompt, key, trace in zip(prompts, keys, together, strict=True):
        expected = sample("autoregressive", target(), None, prompt, 24, request_key=key, **way).output
        assert trace.output == expected
    assert together[0].output != together[2].output
    # The same where rows end at different times.
    ends = {together[0].output[3], together[1].output[9]}
    short = decoder.decode_batch(prompts, models.wanted(24, *ends, do_sample=True, request_key=keys, **way))
    for trace, whole in zip(short, together, strict=True):
        places = [place for place, token in enumerate(whole.output, 1) if token in ends]
        assert trace.output == whole.output[: min(places, default=24)]
    assert len({len(trace.output) for trace in short}) > 1


@pytest.mark.parametrize("method", TREES)
def test_output_ends_behind_the_first_end_token(target: Build, drafter: Drafts, method: str) -> None:
    """Guards against tokens after an end token inside a path."""
    plain = sample("autoregressive", target(), None, [*PROMPT], 16).output
    name, knobs = METHODS[method]
    decoder = plugins.load("decoding", name).Decoder(target(), drafter("same"), models.calibration(), **knobs)
    for eos in dict.fromkeys(plain):
        output = decoder.decode([*PROMPT], models.wanted(16, eos, do_sample=True)).output
        assert output == plain[: plain.index(eos) + 1]


@pytest.mark.parametrize("mistake", ["by depth in the tree", "by the root alone", "one position late"])
def test_noise_of_another_position_is_found_out(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    """Guards the tests above: verification that takes another position's noise must fail them."""

    def wrong(tree: TokenTree, logits: Tensor, sampler: Sampler, position: int, *_: Any) -> tuple[Tensor, int]:
        if mistake == "by the root alone":
            tree = TokenTree(tree.nodes._replace(depths=[0] * len(tree)))
        return verify(
            tree, logits, sampler, {"by depth in the tree": 0, "one position late": position + 1}.get(mistake, position)
        )

    plain = sample("autoregressive", target(), None, [*PROMPT], 24).output
    assert sample("chain", target(), drafter("same"), [*PROMPT], 24).output == plain
    monkeypatch.setattr(speculative, "verify", wrong)
    assert sample("chain", target(), drafter("same"), [*PROMPT], 24).output != plain


def test_a_draft_vocabulary_has_the_noise_of_its_tokens(target: Build, drafter: Drafts) -> None:
    """Guards the columns: the target as its own drafter, over a third of the tokens, is right wherever it can be."""
    ids = torch.arange(2, models.VOCABULARY, 3)
    helper = DraftModel(drafter("same").language_model, ids)
    trace = sample("chain", target(), helper, [*PROMPT], 60)
    drafted = [token for round_ in trace.rounds for token in round_.tree["tokens"][1:]]  # type: ignore[index]
    assert drafted and set(drafted) <= set(ids.tolist())
    allowed = set(ids.tolist())
    for round_ in trace.rounds:
        # Whatever was emitted and could have been drafted was, up to the depth that was drafted.
        possible = [token in allowed for token in round_.emitted[: round_.depth]]
        assert round_.accepted >= (possible.index(False) if False in possible else len(possible))


def test_the_audit_adds_the_same_noise(target: Build) -> None:
    """Guards against an audit of drawn text by the plain argmax, and one that lets another seed's text pass."""
    asked = models.wanted(24, do_sample=True, temperature=0.9, seed=3)
    output = plugins.load("decoding", "autoregressive").Decoder(target()).decode([*PROMPT], asked).output
    assert audit(target(), [*PROMPT], output, 1e-6, asked)["largest_gap"] == 0
    for other in (asked.model_copy(update={"seed": 4}), asked.keyed([1]), models.wanted(24)):
        with pytest.raises(UserError, match="not exact"):
            audit(target(), [*PROMPT], output, 1e-6, other)
    elsewhere = audit(target(), [*PROMPT], output[::-1], 1e-6, asked, comparable=False)
    assert elsewhere["flips"] is None and elsewhere["perplexity"] > 1


@pytest.mark.parametrize("method", ["transformers", "prompt_lookup", "assisted"])
def test_transformers_methods_draw_by_a_seed_of_their_own(target: Build, drafter: Drafts, method: str) -> None:
    """Guards the baselines: drawn, not greedy, the same by the same seed, and torch's generator left as it was."""
    # Models are made by torch's generator, too.
    target(), drafter("related")
    torch.manual_seed(11)
    state = torch.get_rng_state()
    way = {"temperature": 0.9, "top_p": 0.99}
    first, again, other = (
        sample(method, target(), drafter("related"), [*PROMPT], 20, seed=seed, **way).output for seed in (1, 1, 2)
    )
    assert first == again and first != other != reference(target(), PROMPT, 20)
    assert torch.equal(torch.get_rng_state(), state)


def test_runs_and_their_audit_give_each_prompt_its_place_as_key(target: Build, drafter: Drafts) -> None:
    """Guards the workflow's keys, also in the smaller group at the end, and an audit by other keys."""
    prompts = [Prompt(f"p{n}", "d", "d", "", "evaluation", "", 0, [*PROMPT]) for n in range(3)]
    asked = models.wanted(12, do_sample=True)
    name, knobs = METHODS["chain"]
    decoder = plugins.load("decoding", name).Decoder(target(), drafter("related"), models.calibration(), **knobs)
    outputs, _ = runs.generate(target(), decoder, prompts, asked, batch=2)
    expected = [sample("autoregressive", target(), None, [*PROMPT], 12, request_key=key).output for key in range(3)]
    assert [output["output_ids"] for output in outputs] == expected
    assert {row["flips"] for row in records(target(), prompts, outputs, 1e-6, asked)} == {0}
    with pytest.raises(UserError, match="not exact"):
        records(target(), prompts, [outputs[0] | {"prompt_id": "p1"}], 1e-6, asked)


def test_calibration_reads_drawn_text_with_its_noise(target: Build, drafter: Drafts) -> None:
    """Guards the curves of drawn text: with the noise that drew it, the target as its own drafter is always right."""
    kind = calibrate.SAMPLED[-1].keyed([3])
    asked = kind.model_copy(update={"max_new_tokens": 30})
    output = plugins.load("decoding", "autoregressive").Decoder(target()).decode([*PROMPT], asked).output
    _, right = calibrate.teacher_forced(drafter("same"), [*PROMPT], output, kind)
    assert right[:, 0].all()
    assert not calibrate.teacher_forced(drafter("same"), [*PROMPT], output, kind.keyed([4]))[1][:, 0].all()


def test_the_audit_allows_for_rounding_at_the_edge_of_a_nucleus(target: Build) -> None:
    """Guards targets that are not bitwise: a token that rounding moved across a cutoff is no error, another one is."""
    sampler = models.wanted(1, do_sample=True, top_k=3, temperature=0.5).sampler()
    assert sampler is not None
    scores = torch.full((models.VOCABULARY,), -9.0)
    scores[:5] = torch.tensor([2.0, 1.0, 0.5, 0.4999, 0.1])
    words = sampler._noise.words(7, len(scores))
    last, out = 3, 5
    # Of the smallest word the noise is 22.9, of the others 0.4.
    words[:] = 2**31
    words[last] = words[out] = 0
    assert sampler.token(scores, 7) != last
    assert sampler.gap(scores, last, 7, 1e-2) < 0
    assert sampler.gap(scores, out, 7, 1e-2) == float("inf")
    assert sampler.gap(scores, 1, 7, 1e-2) > 1
