"""Traversal verification gives the target's distribution: every draw and every decision of a toy is enumerated."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from typing import Any

import pytest
import torch
from torch import Tensor

from dynatree import plugins
from dynatree.errors import UserError
from dynatree.generation.sampling import Draw, Noise, Sampler, Warpers
from dynatree.tree import TokenTree
from dynatree.verification import traversal
from tests.generation.test_sampling import too_far

SIZE, LENGTH = 3, 3
Text = tuple[int, ...]
Choose = Callable[[Sequence[float]], int]
SAMPLER = Sampler(Warpers(), 0, 0)

POLICIES: dict[str, dict[str, Any]] = {
    "one child": {"policy": "chain", "draft_tokens": 2},
    "two of three": {"policy": "fixed", "depth": 2, "branch": 2, "budget": None},
    "all three": {"policy": "fixed", "depth": 2, "branch": 3, "budget": None},
    "cut by number": {"policy": "fixed", "depth": 2, "branch": 2, "budget": 3},
    "cut by probability": {"policy": "threshold", "depth": 2, "branch": 2, "threshold": 0.2, "budget": None},
    "cut by rank": {"policy": "threshold", "depth": 2, "branch": 2, "threshold": None, "budget": 2},
}


def conditionals(seed: int, spread: float) -> dict[Text, Tensor]:
    """Log-probabilities of the next token after each text of up to two tokens; `spread`: of their logits."""
    generator = torch.Generator().manual_seed(seed)
    texts = [text for length in range(LENGTH) for text in product(range(SIZE), repeat=length)]
    return {text: torch.log_softmax(spread * torch.randn(SIZE, generator=generator), 0) for text in texts}


TARGET, DRAFT = conditionals(1, 2.0), conditionals(2, 0.7)
EXPECTED = {
    text: float(sum(TARGET[text[:at]][text[at]] for at in range(LENGTH)).exp())  # type: ignore[union-attr]
    for text in product(range(SIZE), repeat=LENGTH)
}


class Choices:
    """One play: takes the indices that it is `told`, then the first possible one; `others` are the plays beside it."""

    def __init__(self, told: list[int]):
        self._told, self._taken = told, 0
        self.probability, self.others = 1.0, list[list[int]]()

    def __call__(self, chances: Sequence[float]) -> int:
        possible = [index for index, chance in enumerate(chances) if chance > 0]
        if self._taken == len(self._told):
            self.others += [[*self._told, other] for other in possible[1:]]
            self._told = [*self._told, possible[0]]
        self._taken += 1
        index = self._told[self._taken - 1]
        self.probability *= chances[index]
        return index


def outcomes(play: Callable[[Choose], Text]) -> Iterator[tuple[Text, float]]:
    """Every outcome of `play` with its probability; it asks for an index by the probabilities of each."""
    pending: list[list[int]] = [[]]
    while pending:
        choices = Choices(pending.pop())
        yield play(choices), choices.probability
        pending += choices.others


def drafted(
    policy: Any, before: Text, drawn: Callable[[TokenTree, int, Tensor, int], Tensor]
) -> tuple[TokenTree, dict[int, Draw], list[Text]]:
    """A tree that `policy` grows after `before` and cuts, what was drawn for it, and the text at each of its nodes.

    `drawn` gives the children of (tree, node, log-probabilities, how many), in order.
    """
    growth, tree, frontier = policy.start(None, 0), TokenTree.root(0), [0]
    draws: dict[int, Draw] = {}
    for _ in range(min(growth.depth, LENGTH - len(before) - 1)):
        frontier = growth.expand(tree, frontier)
        if not frontier:
            break
        for node in frontier:
            log_probs = DRAFT[before + text_of(tree, node)]
            draws[node] = Draw(drawn(tree, node, log_probs, min(growth.branch, SIZE)), log_probs, None)
        edges = [(node, token) for node in frontier for token in draws[node].columns.tolist()]
        log_probs = [tree.nodes.log_probs[node] + float(draws[node].log_probs[token]) for node, token in edges]
        kept = [place for place, one in enumerate(growth.children(tree, log_probs, frontier)) if one]
        parents, tokens = ([edges[place][end] for place in kept] for end in (0, 1))
        tree = tree.extend(parents, tokens, [log_probs[place] for place in kept])
        frontier = [node for node, parent in enumerate(tree.nodes.parents) if parent in frontier]
    tree = tree.subtree(growth.select(tree))
    return tree, draws, [before + text_of(tree, node) for node in range(len(tree))]


def text_of(tree: TokenTree, node: int) -> Text:
    """The tokens from below the root to `node`."""
    return tuple(tree.tokens[tree.ancestors[node]].tolist()[1:])


def round_of(policy: Any, choose: Choose, alike: bool = False) -> Text:
    """The tokens of one round, in which `choose` makes every draw and every decision.

    `alike`: nodes of a level draw alike, as by noise of their position.
    """
    known: dict[int, Tensor] = {}

    def drawn(tree: TokenTree, node: int, log_probs: Tensor, count: int) -> Tensor:
        place = int(tree.depths[node]) if alike else node
        if place not in known:
            left, columns = log_probs.exp(), []
            for _ in range(count):
                columns.append(choose((left / left.sum()).tolist()))
                left[columns[-1]] = 0
            known[place] = torch.tensor(columns)
        return known[place]

    tree, draws, texts = drafted(policy, (), drawn)
    judge = traversal._Round(tree, torch.stack([TARGET[text] for text in texts]), draws, SAMPLER, 0)
    judge._happens = lambda chance: choose([chance, 1 - chance]) == 0  # type: ignore[method-assign]
    judge._drawn = lambda rest: choose((rest / rest.sum()).tolist())  # type: ignore[method-assign]
    found = judge.visit(0, 1.0)
    assert found is not None
    return (*texts[found[0][-1]], found[1])


def furthest(policy: Any, alike: bool = False) -> float:
    """How far the probability of any text of LENGTH tokens, begun by a round and gone on with plainly, is off."""
    begun: Counter[Text] = Counter()
    for text, probability in outcomes(lambda choose: round_of(policy, choose, alike)):
        begun[text] += probability  # type: ignore[assignment]
    assert sum(begun.values()) == pytest.approx(1, abs=1e-5)
    found = dict.fromkeys(EXPECTED, 0.0)
    for text in EXPECTED:
        for count in range(1, LENGTH + 1):
            rest = sum(float(TARGET[text[:at]][text[at]]) for at in range(count, LENGTH))
            found[text] += begun[text[:count]] * float(torch.tensor(rest).exp())
    return max(abs(found[text] - EXPECTED[text]) for text in EXPECTED)


def policy(name: str) -> Any:
    knobs = dict(POLICIES[name])
    return plugins.load("policies", knobs.pop("policy")).Policy(**knobs)


@pytest.mark.parametrize("name", POLICIES)
def test_a_round_has_the_distribution_of_the_target(name: str) -> None:
    """Guards losslessness, by enumeration: trees with one child and several, whole ones and cut ones."""
    assert furthest(policy(name)) < 1e-5


@pytest.mark.parametrize("mistake", ["sure in the end", "with replacement", "the rate as before", "cut children"])
def test_a_wrong_residual_is_found_out(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    """Guards the test above: each of these gives texts of another distribution."""
    right, name = traversal.rejected, "two of three"
    if mistake == "sure in the end":
        # As if a node that was tried with a rate below 1 were sure to be accepted in the end.
        def wrong(rest: Tensor, rate: float, q: Tensor, ids: Tensor | None) -> tuple[Tensor, float]:
            left, kept = right(rest, rate, q, ids)
            return (left / kept, 1.0) if kept else (left, 0.0)

        monkeypatch.setattr(traversal, "rejected", wrong)
    elif mistake == "with replacement":

        def one_by_one(draw: Draw) -> Iterator[tuple[int, Tensor]]:
            yield from ((column, draw.log_probs.exp()) for column in draw.columns.tolist())

        monkeypatch.setattr(Draw, "one_by_one", one_by_one)
    elif mistake == "the rate as before":

        def unchanged(rest: Tensor, rate: float, q: Tensor, ids: Tensor | None) -> tuple[Tensor, float]:
            left, kept = right(rest, rate, q, ids)
            return (left / kept * rate, rate) if kept else (left, 0.0)

        monkeypatch.setattr(traversal, "rejected", unchanged)
    else:
        name = "cut by probability"
        visit = traversal._Round._tried
        monkeypatch.setattr(
            traversal._Round,
            "_tried",
            lambda self, child, token, rate: visit(self, child, token, rate if child is not None else 0.0),
        )
    assert furthest(policy(name)) > 1e-3


def test_nodes_of_a_level_draw_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against noise by position, which agreement has: a rejected branch would tell what stands in the next."""
    for text in DRAFT:
        monkeypatch.setitem(DRAFT, text, torch.full((SIZE,), 1 / SIZE).log())
    assert furthest(policy("two of three")) < 1e-5
    assert furthest(policy("two of three"), alike=True) > 1e-3
    noise = Noise(3, 4)
    every = [noise.below(node, length, 64) for node in range(3) for length in range(5, 8)]
    every += [noise.at(position, 64) for position in range(12)]
    assert len({tuple(one.tolist()) for one in every}) == len(every)
    assert torch.equal(noise.below(1, 6, 64), Noise(3, 4).below(1, 6, 80)[:64])


def test_uniform_numbers_are_of_seed_key_and_position_alone() -> None:
    """Guards reproducibility, and the numbers' range and spread."""
    drawn = torch.tensor(list(islice(Noise(1, 2).uniforms(9), 20_000)), dtype=torch.float64)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.015 and abs(float((drawn < 0.1).float().mean()) - 0.1) < 0.015
    assert list(islice(Noise(1, 2).uniforms(9), 100)) == drawn[:100].tolist()
    others = [Noise(1, 2).uniforms(8), Noise(2, 2).uniforms(9), Noise(1, 1).uniforms(9)]
    assert not {next(other) for other in others} & set(drawn[:5].tolist())


@pytest.mark.parametrize("name", ["confidence", "optimal", "cost_aware"])
def test_policies_that_are_not_vouched_for_say_so(name: str) -> None:
    """Guards against a tree whose nodes are cut by what was drawn below them."""
    assert not plugins.load("policies", name).Policy.cuts_from_above


def sampled(policy: Any, seed: int, noisy: bool) -> Text:
    """LENGTH tokens, round by round, by the random numbers of `seed`; drafts are drawn if `noisy`."""
    sampler, text = Sampler(Warpers(), seed, 0), tuple[int, ...]()
    while len(text) < LENGTH:
        length = len(text)

        def drawn(_: TokenTree, node: int, log_probs: Tensor, count: int, length: int = length) -> Tensor:
            return (log_probs + noisy * sampler.below([node], length, SIZE)[0]).topk(count).indices

        tree, draws, texts = drafted(policy, text, drawn)
        path, token = traversal.verify(tree, torch.stack([TARGET[t] for t in texts]), draws, sampler, length)
        text = (*texts[int(path[-1])], token)
    return text


@pytest.mark.parametrize("drawn", [True, False])
def test_texts_of_many_seeds_have_their_exact_probabilities(drawn: bool) -> None:
    """Guards the random numbers, over several rounds; drafts that are the likeliest, and not drawn, are found out."""
    kind, counts = policy("two of three"), Counter[Text]()
    for seed in range(5000 if drawn else 1000):
        counts[sampled(kind, seed, drawn)] += 1
    assert too_far(counts, EXPECTED) != drawn


def test_a_target_that_is_no_number_is_refused() -> None:
    """Guards against a token drawn from NaN."""
    with pytest.raises(UserError, match="not numbers"):
        traversal.verify(TokenTree.root(0), torch.full((1, SIZE), torch.nan), {}, SAMPLER, 0)


def test_nothing_possible_is_the_first_token_and_ends_in_it() -> None:
    """Guards against NaN where processors leave no token, in the target or in the draft."""
    nothing = torch.full((SIZE,), -torch.inf)
    draw = Draw(torch.arange(2), torch.log_softmax(nothing, 0), None)
    tree = TokenTree.root(0).extend([0, 0], [0, 1], [0.0, 0.0])
    path, token = traversal.verify(tree, nothing.repeat(3, 1), {0: draw}, SAMPLER, 5)
    assert (path.tolist(), token) == ([0], 0)


def test_a_draft_that_is_the_target_is_accepted_whole() -> None:
    """Guards equal distributions, where a rejection is rounding alone and leaves nothing."""
    for seed in range(200):
        sampler = Sampler(Warpers(), seed, 0)
        log_probs = torch.log_softmax(torch.randn(40, generator=torch.Generator().manual_seed(seed)), 0)
        column = (log_probs + sampler.below([0], 0, 40)[0]).topk(1).indices
        tree = TokenTree.root(0).extend([0], column.tolist(), log_probs[column].tolist())
        path, _ = traversal.verify(tree, log_probs.repeat(2, 1), {0: Draw(column, log_probs, None)}, sampler, 0)
        assert path.tolist() == [0, 1]
    # Rejected all the same, by the last bit of a sum: the target's own distribution is left, and not nothing.
    rest, rate = traversal.rejected(log_probs.exp(), 1.0, log_probs.exp(), None)
    assert (rest.sum(), rate) == (pytest.approx(1), 1.0)
