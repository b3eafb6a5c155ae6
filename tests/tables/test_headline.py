"""What is read at a glance, worked out by hand from rows of the table `runs`."""

from typing import Any

import pytest

from dynatree.tables import headline
from dynatree.tables.bootstrap import MINIMUM_GROUPS

MACHINE = {"processor": "Abacus"}
PLAIN = {"speedup": 1.0, "tokens_per_iteration": 1.0, "perplexity": 4.0, "identical": True, "flips": 0}
TIMES = {
    "pace": 0.5,
    "autoregressive_step_ms": 40.0,
    "autoregressive_step_spread": 0.1,
    "tpot_ms": 20.0,
    "ttft_ms": 90.0,
}


def rows(method: str, speedups: list[float], settings: str = "default", **changed: Any) -> list[dict[str, Any]]:
    """Rows of one method: a prompt of its own document for each speedup."""
    run = {"experiment": "headline", "dataset": "d", "dtype": "float32", "batch": 1, "group": 0, "prompt_tokens": 8}
    run |= {"method": method, "settings": settings, "output_tokens": 16, **PLAIN, **TIMES, **changed}
    return [
        {**run, "prompt_id": str(place), "document_id": str(place), "speedup": speedup}
        for place, speedup in enumerate(speedups)
    ]


def test_the_headline_is_of_the_main_runs_by_data_set() -> None:
    """Guards against sweeps and other data sets in a mean, and against an interval of two documents."""
    mixed = rows("dynatree", [2.0, 8.0], tokens_per_iteration=3.0)
    mixed[0]["identical"] = False
    found = headline.headline(
        [
            *mixed,
            *rows("dynatree", [1.5] * MINIMUM_GROUPS, dataset="e"),
            *rows("dynatree", [99.0], experiment="tree_shape"),
            *rows("assisted", [0.5], identical=None),
        ],
        MACHINE,
    )
    assert found == {
        "machine": MACHINE,
        "dynatree": {
            "d": {
                "speedup": pytest.approx(4.0),
                "speedup_interval": None,
                "tokens_per_iteration": 3.0,
                "perplexity": pytest.approx(4.0),
                "identical": 0.5,
            },
            "e": {
                "speedup": 1.5,
                "speedup_interval": "1.5 to 1.5",
                "tokens_per_iteration": 1.0,
                "perplexity": pytest.approx(4.0),
                "identical": 1.0,
            },
        },
        "assisted": {
            "d": {
                "speedup": 0.5,
                "speedup_interval": None,
                "tokens_per_iteration": 1.0,
                "perplexity": pytest.approx(4.0),
                "identical": None,
            }
        },
    }


def test_the_pace_is_of_all_data_sets() -> None:
    """Guards an estimate's input: speedups, times of autoregressive decoding, steps of all runs in this format."""
    plain = [*rows("autoregressive", [1.0]), *rows("autoregressive", [1.0], dataset="e", ttft_ms=160.0)]
    slow = rows("chain", [1.0], experiment="ablation", autoregressive_step_ms=80.0, pace=0.25)
    other = rows("chain", [1.0], experiment="precision", autoregressive_step_ms=1.0, dtype="int4")
    found = headline.pace(
        [*plain, *rows("dynatree", [2.0]), *rows("dynatree", [8.0], dataset="e"), *slow, *other], MACHINE
    )
    assert found["speedup"] == {"autoregressive": 1.0, "dynatree": 4.0}
    assert found["autoregressive"] == {"ttft_ms": 120.0, "tpot_ms": 20.0}
    assert (found["prompt_tokens"], found["machine"]) == (8, MACHINE)
    step = found["autoregressive_step"]
    assert (step["usual_ms"], step["least_ms"], step["most_ms"]) == (20.0, 40.0, 80.0)


def test_a_sweep_holds_the_other_knobs_at_their_usual_values() -> None:
    """Guards against a line through trees that differ in two knobs, and against another method's in between."""
    names = ["D2_B2_tau0.1_N8", "D4_B2_tau0.1_N8", "D8_B2_tau0.1_N8", "D8_B3_tau0.1_N8", "D8_B2_tau0.3_N8"]
    shapes = [
        row
        for place, name in enumerate(names)
        for row in rows("dynatree_threshold", [1.0 + place], settings=name, experiment="tree_shape")
    ]
    steady = rows("dynatree", [9.0], settings="D63_B4_tau0.1_N63", experiment="tree_shape")
    found = headline.plots([*steady, *shapes, *rows("linear", [2.0])])
    assert found["speedup"] == [{"run": "linear, d", "speedup": 2.0, "low": None, "high": None}]
    lines = {knob: [(row[knob], row["speedup"]) for row in found[knob]] for knob in headline.KNOBS}
    assert lines == {
        "depth": [(2, 1.0), (4, 2.0), (8, 3.0)],
        "branch": [(2, 3.0), (3, 4.0)],
        "threshold": [(0.1, 3.0), (0.3, 5.0)],
    }


def test_a_sweep_tells_its_places_apart() -> None:
    """Guards against a mean over two data sets, whose documents may have one name, or over two formats."""
    shapes = [
        row
        for depth, speedup in ((2, 1.0), (4, 2.0))
        for factor, place in ((1, {}), (2, {"dataset": "e"}), (4, {"dtype": "int8"}))
        for row in rows(
            "dynatree_threshold", [factor * speedup], f"D{depth}_B2_tau0.1_N8", experiment="tree_shape", **place
        )
    ]
    found = [(row["place"], row["depth"], row["speedup"]) for row in headline.plots(shapes)["depth"]]
    assert found == [
        ("d, float32", 2, 1.0), ("d, float32", 4, 2.0), ("d, int8", 2, 4.0), ("d, int8", 4, 8.0),
        ("e, float32", 2, 2.0), ("e, float32", 4, 4.0),
    ]  # fmt: skip


def test_pruning_that_is_off_stands_behind_its_thresholds() -> None:
    """Guards against an aggregation that ends in an error after everything was measured."""
    shapes = [
        row
        for speedup, tau in ((1.0, "None"), (3.0, "0.3"), (2.0, "0.1"))
        for row in rows("dynatree_threshold", [speedup], settings=f"D4_B2_tau{tau}_N8", experiment="tree_shape")
    ]
    found = headline.plots(shapes)["threshold"]
    assert [(row["threshold"], row["speedup"]) for row in found] == [(0.1, 2.0), (0.3, 3.0), (None, 1.0)]


def test_without_shapes_of_trees_there_is_no_sweep() -> None:
    """Guards against a lacking file, or an error, where params.yaml compares none or one of them."""
    one = rows("dynatree", [9.0], settings="D63_B4_tau0.1_N63", experiment="tree_shape")
    for known in (rows("linear", [2.0]), [*rows("linear", [2.0]), *one]):
        found = headline.plots(known)
        assert found.keys() == set(headline.PLOTS)
        assert not any(found[knob] for knob in headline.KNOBS)
