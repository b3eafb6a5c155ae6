"""What rows decide together: who drafts, and how wide their forward is."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import BatchCosts, Curve
from dynatree.generation.batch_planner import Sharing
from dynatree.policies import Offer
from tests import models

# By rows. A second node is dear, and with it a third is for nothing.
VERIFY = Curve(contexts=[16], tokens=[1, 2, 3, 4, 8], seconds=[[2, 2.2, 3.0, 2.5, 3.3]])
DRAFT = {rows: Curve(contexts=[16], tokens=[1, 2, 8], seconds=[[0.5 + 0.5 * rows, 3, 9]]) for rows in (1, 2, 3)}


def sharing() -> Sharing:
    """Of up to three rows: a draft forward below one node of each takes 1, 1.5, 2 s, below two nodes 3 s."""
    costs, steps = models.calibration()
    batches = [BatchCosts(rows=rows, verify=VERIFY, draft=DRAFT[rows]) for rows in (2, 3)]
    return Sharing(Calibration(costs.model_copy(update={"draft": DRAFT[1], "batches": batches}), steps))


def rows(*offers: Offer, gains: list[float | None] | None = None) -> Any:
    """Rows that offer this, whose forward is to be as wide as the best of `gains`."""
    return [
        SimpleNamespace(
            number=number,
            committed=[1],
            nodes=3,
            gains=lambda: torch.tensor(gains or [0.0], dtype=torch.float64),
            offer=lambda offer=offer: offer,
        )
        for number, offer in enumerate(offers)
    ]


def offer(worth: float, *, nodes: int = 1, verified: int = 0, children: int = 0, due: bool = False) -> Offer:
    """Of a level below one node, unless said otherwise."""
    return Offer(nodes, worth, verified, children, due)


WIDE = [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("offers", "gains", "drafting"),
    [
        # Neither pays for 1 s alone, both together pay for 1.5.
        ([offer(0.9), offer(0.8)], None, [0, 1]),
        ([offer(0.9), offer(0.5)], None, []),
        # The first is worth less than the half second that it takes more.
        ([offer(0.1), offer(1.2)], None, [1]),
        # In their own order, whatever they are worth.
        ([offer(0.9), offer(1.9), offer(1.4)], None, [0, 1, 2]),
        # All are verified in the wider forward,
        ([offer(0.9, children=1), offer(0.75)], None, []),
        # unless it is as wide as that anyway.
        ([offer(0.9, verified=2, children=1), offer(0.75)], WIDE, [0, 1]),
        # The batch has room for fewer nodes than the row would verify alone: one child widens it by one.
        ([offer(0.9, verified=3, children=1), offer(0.85)], None, [0, 1]),
        # Room for two nodes is cheaper by a forward over four tokens than by one over three.
        ([offer(1.0, children=2), offer(0.9)], None, []),
        ([offer(1.2, children=2), offer(0.9)], None, [0, 1]),
        # One row whose level is dear is left out, though it is worth most.
        ([offer(1.4, nodes=2), offer(1.3), offer(1.3)], None, [1, 2]),
        # Tried because it is due; no reason for the others, but a forward that they may join.
        ([offer(0.4), offer(0.1, due=True)], None, [1]),
        ([offer(0.7), offer(0.1, due=True)], None, [0, 1]),
        ([offer(0.1, due=True), offer(0.2, due=True)], None, [0, 1]),
    ],
)
def test_who_drafts(offers: list[Offer], gains: list[float | None] | None, drafting: list[int]) -> None:
    """Guards against a draft forward for one row alone that all were to share, against lost probes, and against rows
    out of order, for which the draft cache would be copied."""
    asked = rows(*offers, gains=gains)
    assert [row.number for row in sharing().drafting(asked, asked)] == drafting


def test_who_does_not_reckon_drafts() -> None:
    """Guards against costs that decide for a policy which knows none, and against a vote of one."""
    alone, none = rows(offer(0.1)), [*rows(*[None] * 3)]
    assert sharing().drafting(alone, alone) == alone
    assert Sharing(None).drafting(none, none) == none
    assert sharing().drafting([], none) == []


@pytest.mark.parametrize(
    ("gains", "width"),
    [
        ([[0, 3, 5, -1], [0, -2, -6, -7]], 1),  # alone, the first would take two nodes, the second none
        ([[0, 3, 5, -1], [0, -2, -3, -7]], 2),
        ([[0, 1], [0, -2]], 0),
        ([[0, 1, 2, 3, 9], [0, 1, 2, 3, 9]], 3),  # neither has a fourth node
        ([[0, 3]], None),
        ([None, None], None),
    ],
)
def test_how_wide_a_forward_is(gains: list[list[float] | None], width: int | None) -> None:
    """Guards against one row's large tree, for which all the others pay in padding."""
    asked: Any = [
        SimpleNamespace(gains=lambda own=own: own and torch.tensor(own, dtype=torch.float64), nodes=3) for own in gains
    ]
    assert sharing().width(asked) == width


def test_a_batch_larger_than_any_measured_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Guards against trees by costs of another batch without a word, and against a word for every round."""
    shared = sharing()
    for count in (3, 2, 1, 0):
        shared.begin(count)
    assert not caplog.text
    shared.begin(5)
    assert [shared.of(count) == shared.of(3) for count in (5, 4, 2)] == [True, True, False]
    assert caplog.messages == ["cost table: no batch of 5 was measured, one of 3 stands for it"]
