"""An instrumented pass: phases of every round, and the models' forwards within them."""

import time
from typing import Any

import pytest
import torch
from torch import nn

from dynatree import decoding
from dynatree.data.prompts import Prompt
from dynatree.engine.checkpoint import Pair
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.measuring import pacing, phases
from tests import models
from tests.conftest import Build, Drafts

pytestmark = pytest.mark.usefixtures("own_lock")

TREE = {"policy": "threshold", "depth": 3, "branch": 2, "threshold": 0.01, "budget": 8}
PHASES = {"draft", "select", "verify", "cache"}
PROMPT = Prompt("d/5/0", "5", "d", "title", "evaluation", "document", 0, [5, 9, 3])


def record(target: LanguageModel, drafter: DraftModel) -> dict[str, Any]:
    decoder = decoding.build(target, drafter, "speculative", TREE)
    return phases.record(Pair(target, drafter), decoder, PROMPT, models.wanted(12))


def test_spans_cover_every_round(target: Build, drafter: Drafts) -> None:
    """Guards the timeline: every round has each phase once, in order, and none overlap."""
    made = record(target(), drafter("related"))
    spans = made["spans"]
    assert spans[0][:2] == (-1, "prefill")
    for number in range(len(made["rounds"])):
        names = [name for round_, name, _, _ in spans if round_ == number]
        assert set(names) == PHASES
        assert len(names) == len(PHASES)
    edges = [moment for _, _, begin, end in spans for moment in (begin, end)]
    assert edges == sorted(edges)
    assert made["output_ids"] == models.generated(target(), PROMPT.ids, 12)
    assert len(made["references"]) >= 2


def test_every_forward_of_the_request_is_seen_where_it_ran(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the share outside forwards against forwards that are missed, counted twice, or a reference's."""
    monkeypatch.setattr(pacing, "SAMPLE_EVERY", 0.0)
    monkeypatch.setattr(pacing, "SAMPLE_REST", 0)
    made = record(target(), drafter("related"))
    assert len(made["references"]) > len(made["rounds"])

    def within(wanted: str) -> list[int]:
        return [
            sum(begin <= b and e <= end for b, e in made["forwards"])
            for _, name, begin, end in made["spans"]
            if name == wanted
        ]

    assert within("draft") == [fact["draft_forwards"] for fact in made["rounds"]]
    assert within("verify") == [1] * len(made["rounds"])
    assert within("prefill") == [1]
    assert len(made["forwards"]) == sum(within("draft")) + len(made["rounds"]) + 1
    assert all(begin < end for begin, end in made["forwards"])


def test_a_head_of_its_own_belongs_to_a_draft_forward(target: Build, drafter: Drafts) -> None:
    """Guards against a draft vocabulary's head, most of a draft, being taken for work besides; and hooks that stay."""
    plain, small = target(dtype=torch.float32), drafter("related", dtype=torch.float32).language_model
    drafting = DraftModel(small, torch.arange(0, 40))
    head = drafting._head
    assert isinstance(head, nn.Module) and head is not small.model
    slow = head.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    made = record(plain, drafting)
    slow.remove()
    drafts = [end - begin for begin, end in made["forwards"] if end - begin >= 0.2]
    assert len(drafts) == made["draft_forwards"] > 0
    assert not head._forward_hooks and not small.model.base_model._forward_hooks
