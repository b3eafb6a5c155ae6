"""Sampling by shared noise: the warpers are transformers', the noise is Gumbel's, the draws have the distribution."""

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper
from transformers import TopPLogitsWarper as TopP

from dynatree.decoding.autoregressive import Decoder
from dynatree.generation.options import GenerationOptions
from dynatree.generation.sampling import Noise, Sampler, Warpers
from tests import models

LENGTH = 3


def too_far(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> bool:
    """Whether the counts of sequences are not those of their probabilities `expected`."""
    total = sum(counts.values())
    assert sum(expected.values()) == pytest.approx(1) and set(counts) <= set(expected)
    statistic = sum((counts[key] - total * p) ** 2 / (total * p) for key, p in expected.items())
    freedom = len(expected) - 1
    # Its mean plus five standard deviations, which chance does not reach.
    return statistic > freedom + 5 * (2 * freedom) ** 0.5


@settings(max_examples=200)
@given(st.data())
def test_warpers_are_those_of_transformers_row_by_row(data: st.DataObject) -> None:
    """Guards against another order, another bound, and a nucleus that ends elsewhere."""
    rows, size = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 5, 61, 700]))
    seed = data.draw(st.integers(0, 2**31))
    scores = 4 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    asked = {
        "temperature": data.draw(st.sampled_from([0.3, 0.7, 1.0, 2.0])),
        "top_k": data.draw(st.sampled_from([0, 1, 3, 50, 1000])),
        "top_p": data.draw(st.sampled_from([1e-6, 0.3, 0.9, 0.95, 0.999, 1.0])),
        "min_p": data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
    }
    theirs = LogitsProcessorList([TemperatureLogitsWarper(asked["temperature"])])
    theirs += [TopKLogitsWarper(asked["top_k"])] if asked["top_k"] else []
    theirs += [TopP(asked["top_p"])] if asked["top_p"] < 1 else []
    theirs += [MinPLogitsWarper(asked["min_p"])] if asked["min_p"] else []
    expected = theirs(torch.zeros(rows, 1, dtype=torch.long), scores.clone())
    assert torch.equal(Warpers(**asked).warped(scores), expected)


def test_a_row_is_warped_alike_alone_and_among_others() -> None:
    """Guards against a nucleus whose sums depend on what stands beside it: a tree would draw another token."""
    scores = 3 * torch.randn(64, 5000, generator=torch.Generator().manual_seed(0))
    warpers = Warpers(temperature=0.8, top_k=900, top_p=0.9)
    together = warpers.warped(scores)
    assert all(torch.equal(warpers.warped(row[None])[0], found) for row, found in zip(scores, together, strict=True))


def test_noise_is_gumbels() -> None:
    """Guards the distribution of the noise: quantiles, independence of neighbours, nothing infinite."""
    drawn = torch.stack([Noise(5, 2).at(position, 5000) for position in range(40)]).double()
    assert drawn.isfinite().all() and drawn.dtype == torch.float64
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        expected = -np.log(-np.log(share))
        spread = (share * (1 - share) / drawn.numel()) ** 0.5 / (np.exp(-expected) * share)
        assert abs(float(drawn.flatten().kthvalue(int(share * drawn.numel())).values) - expected) < 6 * spread
    normal = (drawn - drawn.mean()) / drawn.std()
    for shifted in (normal[1:] * normal[:-1], normal[:, 1:] * normal[:, :-1]):
        assert abs(float(shifted.mean())) < 6 / shifted.numel() ** 0.5


def test_noise_is_of_seed_key_and_position_alone() -> None:
    """Guards against noise that depends on what was asked for before, or on the size of a vocabulary."""
    noise = Noise(1, 0)
    first = noise.at(7, 64).clone()
    for position in (3, 900, *range(50)):
        noise.at(position, 64)
    assert torch.equal(noise.at(7, 64), first)
    assert torch.equal(Noise(1, 0).at(7, 11), first[:11])
    assert torch.equal(Noise(1, 0).at(7, 129)[:64], first)
    others = [Noise(2, 0).at(7, 64), Noise(1, 1).at(7, 64), Noise(1, 0).at(8, 64), Noise(0, 1).at(7, 64)]
    assert not any(bool((other == first).any()) for other in others)


def test_noise_of_some_tokens_is_theirs_among_all() -> None:
    """Guards what is drawn without the noise of all: kernels must not compute a number otherwise at another place."""
    noise, chance = Noise(4, 1), np.random.default_rng(0)
    every = noise.at(2, 49_152)
    for count in (*range(1, 40), 500, 5_000):
        ids = chance.choice(len(every), count, replace=False)
        assert torch.equal(torch.from_numpy(noise.of(ids, 2, len(every))), every[torch.from_numpy(ids)])


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0, 300.0])
@pytest.mark.parametrize("raised", [0.0, 1e4])
def test_the_best_is_that_of_all_noise(spread: float, raised: float) -> None:
    """Guards the bound behind which nothing is looked at: flat, peaked and large scores, ties, and what is cut off."""
    noise, chance = Noise(9, 2), np.random.default_rng(1)
    for position in range(60):
        scores = (spread * chance.standard_normal(3_000) + raised).astype(np.float32)
        scores[chance.integers(3_000, size=5)] = scores[0]
        for least in (-np.inf, float(np.quantile(scores, 0.9)), float(scores.max())):
            kept = np.where(scores >= least, scores, -np.inf).astype(np.float32)
            assert noise.best(scores, position, least) == (kept + noise.at(position, 3_000).numpy()).argmax()
    nothing, endless = np.full(5, -np.inf, np.float32), np.array([0, np.inf, 1, np.inf], np.float32)
    assert noise.best(nothing, 3) == 0 and noise.best(endless, 3) == 1
    assert noise.best(np.array([0, np.nan, 1], np.float32), 3) == 1


def test_every_seed_and_key_has_noise_of_its_own() -> None:
    """Guards large numbers, which floats do not tell apart, and transformers' generator, which is seeded from both."""
    large = [0, 1, 2**32, 2**53, 2**53 + 1, 2**63, 2**63 + 1, 2**64 - 1]
    pairs = [*product(large, (0,)), *product((0, 5), large[1:])]
    assert len({tuple(Noise(*pair).at(3, 8).tolist()) for pair in pairs}) == len(pairs)
    options = [GenerationOptions(max_new_tokens=1, do_sample=True, seed=seed).keyed([key]) for seed, key in pairs]
    assert len({one.torch_seed() for one in options}) == len(pairs)


def conditionals(size: int) -> dict[tuple[int, ...], torch.Tensor]:
    """Log-probabilities of the next token after each text of up to two tokens."""
    generator = torch.Generator().manual_seed(size)
    texts = [text for length in range(LENGTH) for text in product(range(size), repeat=length)]
    return {text: torch.log_softmax(1.5 * torch.randn(size, generator=generator), 0) for text in texts}


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    """[seeds, LENGTH, 4] of many seeds; its beginning is that of a smaller vocabulary."""
    rows = [[Noise(seed, 0).at(position, 4) for position in range(LENGTH)] for seed in range(100_000)]
    return torch.stack([torch.stack(row) for row in rows])


def drawn(known: dict[tuple[int, ...], torch.Tensor], noise: torch.Tensor) -> Counter[tuple[int, ...]]:
    """How often each text comes of `noise` [seeds, LENGTH, size], token by token."""
    seeds, _, size = noise.shape
    texts = {at: [*product(range(size), repeat=at)] for at in range(LENGTH + 1)}
    place = torch.zeros(seeds, dtype=torch.long)  # among the texts of a length, which are in order
    for at in range(LENGTH):
        after = torch.stack([known[text] for text in texts[at]])
        place = size * place + (after[place] + noise[:, at]).argmax(1)
    counts = place.bincount(minlength=size**LENGTH).tolist()
    return Counter(dict(zip(texts[LENGTH], counts, strict=True)))


@pytest.mark.parametrize("size", [3, 4])
def test_sequences_have_their_exact_probabilities(noise: torch.Tensor, size: int) -> None:
    """Guards the distribution, by enumeration; noise that two positions share must be found out."""
    known = conditionals(size)
    expected = {
        text: float(torch.stack([known[text[:at]][text[at]] for at in range(LENGTH)]).sum().exp())
        for text in product(range(size), repeat=LENGTH)
    }
    assert not too_far(drawn(known, noise[..., :size]), expected)
    assert too_far(drawn(known, noise[:10_000, [0, 1, 1], :size]), expected)


def test_decoding_has_the_distribution_of_transformers_sampling() -> None:
    """Guards autoregressive sampling of a model, through caches and warpers, beside `generate(do_sample=True)`."""
    model = models.language_model(vocab_size=4)
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(0.4)
    prompt, asked = [1, 3, 2], {"temperature": 0.8, "top_p": 0.97}
    warpers = Warpers(**asked)

    def probability(text: tuple[int, ...]) -> float:
        logits = model.score(torch.tensor([*prompt, *text[:-1]]), LENGTH)
        steps = torch.log_softmax(warpers.warped(logits), -1)
        return float(steps[range(LENGTH), list(text)].sum().exp())

    every = {text: probability(text) for text in product(range(4), repeat=LENGTH)}
    expected = {text: p for text, p in every.items() if p}
    keys, options = 4000, models.wanted(LENGTH, do_sample=True, seed=3, **asked)
    ours: Counter[tuple[int, ...]] = Counter()
    for start in range(0, keys, 500):
        together = Decoder(model).decode_batch([prompt] * 500, options.keyed(range(start, start + 500)))
        ours.update(tuple(trace.output) for trace in together)
    torch.manual_seed(0)
    ids = torch.tensor([prompt])
    sampled = model.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        max_new_tokens=LENGTH,
        num_return_sequences=keys,
        pad_token_id=0,
        **asked,
    )
    theirs = Counter(tuple(row) for row in sampled[:, len(prompt) :].tolist())
    assert not too_far(ours, expected)
    assert not too_far(theirs, expected)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"do_sample": True, "temperature": -1}, "greater than or equal to 0"),
        ({"do_sample": True, "temperature": 1e-5}, "temperature 1e-05: give 0.001 or more, or 0 for greedy"),
        ({"do_sample": True, "temperature": float("inf")}, "finite number"),
        ({"do_sample": True, "top_p": 0}, "greater than 0"),
        ({"do_sample": True, "top_p": 1.5}, "less than or equal to 1"),
        ({"do_sample": True, "min_p": -0.1}, "greater than or equal to 0"),
        ({"do_sample": True, "top_k": -1}, "greater than or equal to 0"),
        ({"do_sample": True, "seed": 1.5}, "valid integer"),
        ({"do_sample": True, "seed": True}, "valid integer"),
        ({"do_sample": True, "seed": -1}, "greater than or equal to 0"),
        ({"temperature": 0.7}, "temperature 0.7 is for sampling.*do_sample=True"),
        ({"seed": 4}, "seed 4 is for sampling"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], told: str) -> None:
    """Guards against options that are silently ignored."""
    with pytest.raises(ValueError, match=told):
        GenerationOptions(max_new_tokens=1, **given)


def test_temperature_0_and_options_that_are_not_asked_for_are_greedy() -> None:
    """Guards against noise in a greedy output."""
    greedy = [{}, {"do_sample": True, "temperature": 0}, {"temperature": 0}, {"temperature": 1.0, "top_p": None}]
    assert not any(GenerationOptions(max_new_tokens=1, **given).sampler() for given in greedy)  # type: ignore[arg-type]
    assert GenerationOptions(max_new_tokens=1, do_sample=True).sampler()


def test_nothing_possible_is_the_first_token() -> None:
    """Guards against NaN from a nucleus of nothing: greedy decoding takes token 0 there, too."""
    nothing = torch.full((6,), -torch.inf)
    assert Sampler(Warpers(temperature=0.7, top_k=3, top_p=0.9, min_p=0.1), 0, 0).token(nothing, 3) == 0
