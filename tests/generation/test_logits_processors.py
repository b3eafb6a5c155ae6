"""Logits processors on trees: equal to transformers' own, step by step, for every method."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from dynatree import plugins
from dynatree.errors import UserError
from dynatree.generation.logits_processors import LogitsProcessors
from dynatree.measuring.audit import audit
from dynatree.tree import TokenTree
from tests import models
from tests.conftest import Build, Drafts
from tests.decoding.test_exactness import METHODS
from tests.test_tree import line, trees

PROMPT = [3, 1, 4, 1, 5, 3, 1]
CASES = [
    LogitsProcessors(repetition_penalty=1.2),
    LogitsProcessors(repetition_penalty=0.8),
    LogitsProcessors(no_repeat_ngram_size=2),
    LogitsProcessors(no_repeat_ngram_size=1),
    LogitsProcessors(repetition_penalty=1.5, no_repeat_ngram_size=3),
]


def theirs(processors: LogitsProcessors, logits: torch.Tensor, text: list[int]) -> torch.Tensor:
    """One row by transformers."""
    row, ids = logits.float()[None].clone(), torch.tensor([text])
    if processors.repetition_penalty != 1:
        row = RepetitionPenaltyLogitsProcessor(processors.repetition_penalty)(ids, row)
    if processors.no_repeat_ngram_size:
        row = NoRepeatNGramLogitsProcessor(processors.no_repeat_ngram_size)(ids, row)
    return row[0]


@given(trees(tokens=4), st.lists(st.integers(0, 5), max_size=8), st.sampled_from(CASES), st.integers(0, 99))
def test_each_node_is_processed_as_if_its_path_were_committed(
    tree: TokenTree, before: list[int], processors: LogitsProcessors, seed: int
) -> None:
    """Guards against a penalty for a sibling's token, for the prefix alone, or for tokens of the root twice."""
    logits = torch.randn(len(tree), 9, generator=torch.Generator().manual_seed(seed))
    text = torch.tensor([*before, int(tree.tokens[0])])
    processed = processors.process(logits.clone(), text, tree)
    for node in range(len(tree)):
        path = tree.tokens[line(tree, node)].tolist()
        assert torch.allclose(processed[node], theirs(processors, logits[node], [*before, *path]))
    chosen = [*range(len(tree))][::2]
    columns = torch.tensor([2, -1, 0, 1, -1, -1, 3, -1, -1])
    few = processors.process(logits[chosen][:, [2, 3, 0, 6]], text, tree, chosen, columns)
    assert torch.allclose(few, processed[chosen][:, [2, 3, 0, 6]])


@pytest.mark.parametrize("processors", CASES, ids=str)
@pytest.mark.parametrize("kind", ["related", "wrong"])
def test_every_method_equals_generate_with_the_same_processors(
    target: Build, drafter: Drafts, processors: LogitsProcessors, kind: str
) -> None:
    """Guards the promise where text does not loop, and the audit that watches over it."""
    ids = torch.tensor([PROMPT])
    options = {**processors.generation_options, "do_sample": False, "max_new_tokens": 24, "pad_token_id": 0}
    expected = target().model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(PROMPT) :].tolist()
    for method, (name, knobs) in METHODS.items():
        decoder = plugins.load("decoding", name).Decoder(target(), drafter(kind), models.calibration(), **knobs)
        output = decoder.decode(PROMPT, models.wanted(24, **processors.generation_options)).output
        assert output == expected, method
    asked = models.wanted(24, **processors.generation_options)
    assert audit(target(), PROMPT, expected, 1e-6, asked)["flips"] == 0


def test_the_audit_knows_which_processors_were_asked_for(target: Build) -> None:
    """Guards against an audit by the plain argmax, which a penalised output need not have."""
    penalised = LogitsProcessors(no_repeat_ngram_size=1)
    decoder = plugins.load("decoding", "autoregressive").Decoder(target())
    asked = models.wanted(24, **penalised.generation_options)
    output = decoder.decode(PROMPT, asked).output
    assert len({*PROMPT, *output}) == len({*PROMPT}) + 24
    assert audit(target(), PROMPT, output, 1e-6, asked)["largest_gap"] == 0
    with pytest.raises(UserError, match="not exact"):
        audit(target(), PROMPT, decoder.decode(PROMPT, models.wanted(24)).output, 1e-6, asked)


def test_without_processors_nothing_is_copied() -> None:
    """Guards the hot loop."""
    logits = torch.zeros(2, 3)
    assert LogitsProcessors().process(logits, torch.tensor([1])) is logits and not LogitsProcessors().active
