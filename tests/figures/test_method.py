"""What the figures of the method pick from the records: the timeline's windows, the tree of a round."""

from typing import Any

import pyarrow as pa
import pytest
import tables as synthetic

from dynatree import plugins
from dynatree.errors import UserError
from dynatree.figures import timeline, tree_attention_mask
from dynatree.tables.schema import TABLES

Row = dict[str, Any]


def test_the_timeline_shows_new_text_and_a_loop() -> None:
    """Guards against a window whose text is not of its kind, and against rounds of another stretch of the output."""
    _, (fresh, loop) = timeline._windows(synthetic.make())
    assert (fresh.name, loop.name) == ("New text", "In a loop, from token 31 on")
    first = loop.lanes[0]
    assert first.method == "autoregressive" and len(first.rounds) == timeline.LIMIT
    assert first.rounds[0].first == 30 and fresh.lanes[0].rounds[0].first == 1
    for lane in loop.lanes:
        assert 30 <= lane.rounds[0].first < 40
    for lane in fresh.lanes + loop.lanes:
        ms = fresh.ms if lane in fresh.lanes else loop.ms
        assert max(bar["x2"] for bar in lane.bars) <= ms + 1e-9
        assert lane.rounds[-1].end - lane.start <= ms * 1.001


def test_other_methods_than_the_usual_three_are_shown() -> None:
    """Guards against passes that are recorded and silently not drawn, and a fourth lane where the three are there."""
    tables = synthetic.make()

    def added(name: str, method: str, dropped: str = "") -> pa.Table:
        rows = tables[name].to_pylist()
        rows += [row | {"method": method} for row in rows if row["method"] == "linear"]
        return pa.Table.from_pylist([row for row in rows if row["method"] != dropped], schema=TABLES[name])

    for dropped, shown in (("", timeline.SHOWN), ("linear", ("autoregressive", "fixed_tree", "dynatree"))):
        _, found = timeline.passes({name: added(name, "fixed_tree", dropped) for name in timeline.TABLES})
        assert tuple(found) == shown


def test_a_round_shows_what_was_rejected() -> None:
    """Guards against a timeline of successes: every tree of these passes holds one node that the target refused."""
    tables = synthetic.make()
    _, windows = timeline._windows(tables)
    drafting = [each for lane in windows[0].lanes if lane.method != "autoregressive" for each in lane.rounds]
    assert drafting and all(each.rejected == ["lost"] for each in drafting)
    kinds = [cell["kind"] for cell in timeline._stack(drafting[0]._replace(texts=["a", "b", "c"], accepted=2))]
    assert kinds == ["own", "accepted", "accepted", "rejected"]
    without = [row for row in tables["nodes"].to_pylist() if row["experiment"] != "timeline"]
    with pytest.raises(UserError, match="no verified nodes of linear"):
        timeline.draw(tables | {"nodes": pa.Table.from_pylist(without, schema=TABLES["nodes"])})


LOST = {"accepted": False, "text": "x", "path_log_probability": -1.0, "node": 1}


def test_a_stack_counts_what_does_not_fit() -> None:
    """Guards against tokens that fall out of a tall stack unsaid."""
    each = timeline.Round(0, 0.0, 1.0, [], [str(place) for place in range(49)], 48, [LOST] * 9)
    words = [cell["text"] for cell in timeline._stack(each)]
    assert words == ["48", "+43", "4", "3", "2", "1", "0", "+7", "x", "x"]


def test_text_that_does_not_repeat_has_one_window() -> None:
    """Guards against a loop that the output does not have."""
    assert timeline._loop([str(place) for place in range(80)]) is None
    assert timeline._loop([str(place % 20) for place in range(80)]) == 20


def tree(experiment: str, method: str, number: int, shape: list[tuple[int, int, bool]]) -> list[Row]:
    """Nodes of a round by (parent, rank, accepted), the root first."""
    rows: list[Row] = []
    for node, (parent, rank, accepted) in enumerate(shape):
        depth = rows[parent]["depth"] + 1 if node else 0
        rows.append(
            {"experiment": experiment, "method": method, "settings": "s", "dataset": "d", "prompt_id": "p", "repeat": 0}
            | {"round": number, "node": node, "parent": parent, "depth": depth, "rank": rank, "token": node}
            | {"text": f"t{node}", "path_log_probability": -float(depth), "accepted": accepted, "hit": accepted}
        )
    return rows


ROOT = (-1, 0, True)
TURN = [ROOT, (0, 0, False), (0, 1, True), (2, 0, True)]


def test_the_recorded_tree_branches_where_it_was_accepted() -> None:
    """Guards against a round that a chain would have won, one of a method whose trees are fixed, and mixed-up runs."""
    chain = [ROOT, *((place, 0, True) for place in range(6)), (0, 1, False)]
    rows = [
        *tree("headline", "dynatree", 0, chain),
        *tree("headline", "dynatree", 1, TURN),
        *tree("headline", "fixed_tree", 2, [*TURN, (3, 1, True)]),
        *tree("batch_size", "dynatree", 3, [*TURN, (3, 1, True)]),
    ]
    found = tree_attention_mask._recorded({"nodes": pa.Table.from_pylist(rows, schema=TABLES["nodes"])})
    assert (found[0]["method"], found[0]["round"]) == ("dynatree", 1)


def test_a_deep_tree_is_not_chosen_while_a_readable_one_is_there() -> None:
    """Guards against a recorded tree that fills a page and leaves the rest of it empty."""
    deep = [ROOT, (0, 0, False), (0, 1, True), *((place, 0, True) for place in range(2, 12))]
    rows = [*tree("headline", "dynatree", 0, deep), *tree("headline", "linear", 1, TURN)]
    figure = plugins.load("figures", "tree_attention_mask")
    assert figure._recorded({"nodes": pa.Table.from_pylist(rows, schema=TABLES["nodes"])})[0]["round"] == 1
