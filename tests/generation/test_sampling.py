"""Sampling by shared noise: the warpers are transformers', the noise is Gumbel's, the draws have the distribution."""

import subprocess
import sys
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
from dynatree.engine.graph import kernels
from dynatree.engine.graph.kernels.drawing import Drawing
from dynatree.errors import UserError
from dynatree.generation import sampling
from dynatree.generation.options import GenerationOptions
from dynatree.generation.sampling import Noise, Sampler, Warpers
from tests import models
from tests.compiler import BOTH_WAYS, BY_LIBRARY, needs_compiler

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


def made() -> Drawing:
    """The library's functions, whether or not a graph has its operations."""
    return kernels.made(Drawing)


@pytest.fixture(params=BOTH_WAYS)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise by numpy alone, then by the library."""
    monkeypatch.setattr(sampling, "drawing", made if request.param == BY_LIBRARY else lambda: None)


def both(monkeypatch: pytest.MonkeyPatch, *key: int) -> tuple[Noise, Noise]:
    """The noise of a key by the library, and by numpy alone."""
    found = []
    for drawing in (made, lambda: None):
        monkeypatch.setattr(sampling, "drawing", drawing)
        found.append(Noise(*key))
    return found[0], found[1]


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0, 300.0])
@pytest.mark.parametrize("raised", [0.0, 1e4])
def test_the_best_is_that_of_all_noise(by: None, spread: float, raised: float) -> None:
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


@needs_compiler
def test_random_words_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards drawn text that depends on whether there is a C++ compiler: all words, of any number."""
    for key in ((0, 0), (2**64 - 1, 2**64 - 1), (7, 2**63)):
        own, other = both(monkeypatch, *key)
        for position, size in product((0, 1, 70, 2**40, 3, 71), (1, 8, 9, 4_099)):
            assert torch.equal(own.at(position, size), other.at(position, size))
            assert torch.equal(own.below(5, position, size), other.below(5, position, size))


@needs_compiler
def test_memory_of_positions_that_are_over_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards words of an earlier position that stay in the memory of a later one; and new memory for each position."""
    own, other = both(monkeypatch, 5, 1)
    scores, places = np.zeros(1_000, np.float32), set[int]()
    for position in range(40):
        # The next but one is asked for early, as by a drafter.
        assert torch.equal(own.at(position + 2, 1_000), other.at(position + 2, 1_000))
        assert own.best(scores, position) == other.best(scores, position)
        assert torch.equal(own.at(position, 1_000), other.at(position, 1_000))
        places.update(words.ctypes.data for words in own._kept.values())
    assert len(places) <= 5


@needs_compiler
def test_few_contenders_are_left_and_the_best_among_them() -> None:
    """Guards a bound that is so loose that nothing is saved by it; and numbers of contenders that are not asked for."""
    library, noise, chance, counts = made(), Noise(3, 1), np.random.default_rng(5), []
    for position in range(200):
        scores = (3 * chance.standard_normal(49_152)).astype(np.float32)
        words = noise.words(position, len(scores))
        near = library.contenders(scores, words, int(scores.argmax()), -np.inf)
        assert near is not None and (np.diff(near) > 0).all()
        assert (scores + noise.at(position, len(scores)).numpy()).argmax() in near
        counts.append(len(near))
    assert np.mean(counts) < 1.1
    # All of them are as likely, and as lucky.
    flat, alike = np.zeros(10_000, np.float32), np.full(10_000, 7, np.uint32)
    assert library.contenders(flat, alike, 0, -np.inf) is None
    near = library.contenders(flat[:4_000], alike[:4_000], 0, -np.inf)
    assert near is not None and near.tolist() == [*range(4_000)]


@needs_compiler
@settings(max_examples=300)
@given(st.data())
def test_contenders_are_never_too_few(data: st.DataObject) -> None:
    """Guards bounds that rounding passes over: words at both ends, where float32 has few numbers, and large scores."""
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = data.draw(st.integers(1, 200))
    edges = [0, 1, 2, 2**23, 2**24 + 1, 2**31, int(0.999 * 2**32), 2**32 - 2**8, 2**32 - 2, 2**32 - 1]
    some = [chance.integers(2**32, size=size), chance.choice(edges, size), 2**32 - chance.integers(1, 2**12, size=size)]
    words = some[data.draw(st.integers(0, 2))].astype(np.uint32)
    scale = data.draw(st.sampled_from([0.0, 1e-6, 0.1, 1.0, 30.0, 1e4, 1e30, 1e38]))
    scores = (scale * np.clip(chance.standard_normal(size), -1, 1)).astype(np.float32)
    if scale < 1e5 and data.draw(st.booleans()):
        scores = scores.astype(np.float16).astype(np.float32)
    scores[chance.random(size) < data.draw(st.sampled_from([0.0, 0.3]))] = -np.inf
    scores[chance.integers(size)] = scores.max() if np.isfinite(scores.max()) else 0
    likeliest = int(scores.argmax())
    for least in (-np.inf, float(np.median(scores)), float(scores.max())):
        near = made().contenders(scores, words, likeliest, least)
        sums = np.where(scores >= least, scores, -np.inf) + sampling.gumbel(words)
        assert near is not None and sums.argmax() in near


def test_no_library_is_compiled_where_no_graph_has_it() -> None:
    """Guards requests on a GPU, or by torch, that wait for a C++ compiler."""
    code = """
from dynatree.engine.graph import kernels
from dynatree.generation import sampling
kernels.library = lambda: 1 / 0
assert sampling.drawing() is None and sampling.Noise(1, 2).at(3, 4).shape == (4,)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("scores", "token"), [([0, np.inf, 1, np.inf], 1), ([-np.inf] * 4, 0)])
@pytest.mark.parametrize("top_p", [0.5, 0.9999])
def test_what_is_no_number_is_found_whatever_is_left(by: None, scores: list[float], token: int, top_p: float) -> None:
    """Guards the way that asks last what may be drawn, where scores cannot be compared."""
    sampler = Sampler(Warpers(top_p=top_p), 3, 0)
    assert sampler.token(torch.tensor(scores), 0) == token
    with pytest.raises(UserError, match="logits are not numbers"):
        sampler.token(torch.tensor([0, np.nan, 1, 2]), 0)


@settings(max_examples=200)
@given(data=st.data())
def test_the_token_is_the_best_of_what_is_left(data: st.DataObject) -> None:
    """Guards the way that asks last what may be drawn: by each warper and all of them, at the edge of the nucleus."""
    warpers = Warpers(
        temperature=data.draw(st.sampled_from([0.3, 0.7, 1.0, 2.0])),
        top_k=data.draw(st.sampled_from([0, 1, 5])),
        top_p=data.draw(st.sampled_from([1e-6, 0.3, 0.9, 0.95, 1.0])),
        min_p=data.draw(st.sampled_from([0.0, 0.05, 1.0])),
    )
    sampler = Sampler(warpers, 11, 0)
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    spread = data.draw(st.sampled_from([0.0, 1.0, 5.0]))
    for position in range(20):
        scores = torch.from_numpy((spread * chance.standard_normal(300)).astype(np.float32))
        scores[int(chance.integers(300))] = scores.max()
        perturbed = sampler.perturbed(scores[None], [position])[0]
        assert sampler.token(scores, position) == int(perturbed.numpy().argmax())


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
