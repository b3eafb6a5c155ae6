"""The accepted path of processed logits: rows are processed one by one, and those along the path alone."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.generation.options import GenerationOptions
from dynatree.generation.request import Request
from dynatree.generation.trace import Clock
from dynatree.tree import TokenTree
from dynatree.verification.agreement import verify

VOCABULARY = 9
# Two children of the root, one below each.
TREE = TokenTree.root(5).extend([0, 0, 1, 2], [1, 2, 3, 4], [-1.0, -1.0, -2.0, -2.0])


def request(**options: object) -> Request:
    wanted = GenerationOptions(max_new_tokens=4, repetition_penalty=2.0, **options)
    return Request([7, 5], wanted, KeyValueCache(), None, Clock())


@pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "temperature": 0.5, "seed": 3}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("seed", range(20))
def test_rows_one_by_one_give_the_path_of_all_at_once(seed: int, sampled: dict[str, object]) -> None:
    """Guards against a row that is processed as another's, and against rows that were given away before."""
    asked = request(**sampled)
    logits = torch.randn(len(TREE), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    before, seen = logits.clone(), list[int]()

    def process(rows: Tensor, nodes: Sequence[int] | None) -> Tensor:
        assert nodes is not None, "on a CPU row by row"
        seen.extend(nodes)
        return asked.process(rows, TREE, nodes)

    path, token = verify(TREE, logits, asked.sampler, 2, process)
    whole, last = verify(TREE, asked.process(logits, TREE), asked.sampler, 2)
    assert path.tolist() == whole.tolist() == seen and token == last
    # They are asked for again: what the target said itself is learnt from.
    assert torch.equal(logits, before)


def test_a_penalty_decides_which_path_is_accepted() -> None:
    """Guards the test above: by the logits as they are another path is right."""
    logits = torch.zeros(len(TREE), VOCABULARY)
    logits[0, 7], logits[0, 2] = 3.0, 2.0
    asked = request()
    assert verify(TREE, logits)[1] == 7
    path, _ = verify(TREE, logits, process=lambda rows, nodes: asked.process(rows, TREE, nodes))
    assert path.tolist()[:2] == [0, 2]


@pytest.mark.parametrize("drawn", [False, True])
def test_nothing_is_asked_behind_an_end_token(drawn: bool) -> None:
    """Guards processors that know no text behind its end, as a grammar does, and rows there that are no numbers."""
    logits = torch.full((len(TREE), VOCABULARY), -torch.inf)
    logits[0, 2] = logits[2, 4] = logits[4, 6] = 0.0
    asked, seen = request(**({"do_sample": True, "seed": 3} if drawn else {})), list[int]()

    def process(rows: Tensor, nodes: Sequence[int] | None) -> Tensor:
        assert nodes is not None, "on a CPU row by row"
        seen.extend(nodes)
        return rows

    def accepted(*ends: int) -> tuple[list[int], int]:
        seen.clear()
        path, token = verify(TREE, logits, asked.sampler, 2, process, ends)
        return path.tolist(), token

    assert accepted() == ([0, 2, 4], 6) and seen == [0, 2, 4]
    assert accepted(4) == ([0, 2, 4], 4) and seen == [0, 2]
    assert accepted(2) == ([0, 2], 2) and seen == [0]
    # One that was not drafted, or that the target does not choose, ends no path.
    assert accepted(1, 3, 6) == ([0, 2, 4], 6) and seen == [0, 2, 4]
