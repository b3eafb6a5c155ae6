"""The study's figures: what they compute from runs and rounds, what they keep apart, what they say."""

import itertools
import random
from typing import Any

import experiments
import pyarrow as pa
import pytest
import tables as synthetic
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

from dynatree import plugins
from dynatree.errors import UserError
from dynatree.figures.shared import captions, grammar, placement, theme
from dynatree.tables.schema import TABLES

Row = dict[str, Any]


def figure(name: str) -> Any:
    return plugins.load("figures", name)


def texts(drawn: Any) -> str:
    return vl_convert.vegalite_to_svg(drawn.to_dict())


def table(name: str, rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=TABLES[name])


def runs(method: str, prompt: int, commits: list[tuple[int, float]], reference: float) -> dict[str, list[Row]]:
    """A run and its rounds, given as (tokens so far, ms)."""
    key = {"experiment": "length_scaling", "method": method, "settings": "default", "dataset": "wikipedia"}
    key |= {"prompt_id": f"wikipedia:{prompt}", "repeat": 0}
    run = key | {"document_id": f"{prompt}", "batch": 1, "output_tokens": commits[-1][0], "pace": 10.0 / reference}
    return {"runs": [run], "rounds": [key | {"output_tokens": made, "commit_ms": ms} for made, ms in commits]}


def together(*parts: dict[str, list[Row]]) -> dict[str, pa.Table]:
    return {name: table(name, [row for part in parts for row in part[name]]) for name in ("runs", "rounds")}


def test_a_length_takes_the_time_of_the_commit_that_reaches_it() -> None:
    """Guards against the last commit before a length, and against ratios of raw times across slower machines."""
    rows = figure("length_scaling")._rows(
        together(
            runs("autoregressive", 0, [(99, 900.0), (100, 1000.0), (200, 2000.0)], reference=10.0),
            runs("dynatree", 0, [(98, 500.0), (103, 800.0), (205, 1100.0)], reference=20.0),
        )
    )
    found = {(row["metric"], row["method"], row["x"]): row["value"] for row in rows}
    assert found["throughput", "dynatree", 100] == pytest.approx(100 / (0.8 * 10 / 20))
    assert found["speedup", "dynatree", 100] == pytest.approx((1000 / 10) / (800 / 20))
    assert found["speedup", "dynatree", 200] == pytest.approx((2000 / 10) / (1100 / 20))
    assert {row["x"] for row in rows} == {100, 200}


def test_every_method_is_judged_on_the_prompts_that_all_bring_so_far() -> None:
    """Guards against a mean that rises because a slow prompt ended early for one method."""
    parts = [
        runs(method, prompt, [(100, 100.0 * pace), (end, 250.0 * pace)], reference=1.0)
        for method, pace in (("autoregressive", 2.0), ("dynatree", 1.0))
        for prompt, end in ((0, 210), (1, 150 if method == "dynatree" else 230))
    ]
    rows = figure("length_scaling")._rows(together(*parts))
    assert {(row["method"], row["x"]): row["prompts"] for row in rows} == {
        ("autoregressive", 100): 2, ("dynatree", 100): 2, ("autoregressive", 200): 1, ("dynatree", 200): 1,
    }  # fmt: skip
    assert "1 to 2 prompts" in figure("length_scaling").caption(together(*parts))


def test_outputs_shorter_than_every_length_are_compared_at_their_common_end() -> None:
    """Guards against an empty figure at a tiny scale."""
    short = together(
        runs("autoregressive", 0, [(16, 160.0)], reference=1.0), runs("dynatree", 0, [(18, 90.0)], reference=1.0)
    )
    assert {row["x"] for row in figure("length_scaling")._rows(short)} == {16}


def test_lengths_need_autoregressive_decoding() -> None:
    """Guards against speedups over whatever method comes first."""
    with pytest.raises(UserError, match="autoregressive"):
        figure("length_scaling").draw(together(runs("dynatree", 0, [(100, 100.0)], reference=1.0)))


def test_lengths_are_of_requests_decoded_alone() -> None:
    """Guards against intervals over prompts whose time is that of their batch."""
    tables = together(runs("autoregressive", 0, [(100, 100.0)], 1.0), runs("dynatree", 0, [(100, 50.0)], 1.0))
    tables["runs"] = table("runs", [row | {"batch": 4} for row in tables["runs"].to_pylist()])
    with pytest.raises(UserError, match="length_scaling: batch 4, whose requests share their time"):
        figure("length_scaling").draw(tables)


def test_a_knobs_panel_holds_the_other_knobs() -> None:
    """Guards against a line on which depth and branch move together."""
    shapes = figure("tree_shape")._found(synthetic.make())[0]
    lines = {knob: figure("tree_shape")._line(shapes.swept, knob) for knob in ("D", "B", "tau")}
    assert [row["settings"] for row in lines["B"]] == [f"D8_B{b}_tau0.03_N64" for b in (2, 3, 4)]
    assert [row["knobs"]["D"] for row in lines["D"]] == ["3", "4", "5", "6", "7", "8"]
    assert {row["settings"].replace(f"D{row['knobs']['D']}", "D") for row in lines["D"]} == {"D_B3_tau0.03_N64"}
    assert [row["knobs"]["tau"] for row in lines["tau"]] == ["0.01", "0.02", "0.03", "0.05", "0.1"]


def test_the_heat_map_writes_every_cell_of_the_grid_and_nothing_else() -> None:
    """Guards against cells of another tau, which would lie on those of the grid."""
    shapes = figure("tree_shape")._found(synthetic.make())[0]
    cells = figure("tree_shape")._grid(shapes.swept)
    assert sorted((row["knobs"]["D"], row["knobs"]["B"]) for row in cells) == [
        (str(d), str(b)) for d in range(3, 9) for b in (2, 3, 4)
    ]
    drawn = texts(figure("tree_shape").draw(synthetic.make()))
    assert all(f">{grammar.number(row['value'])}<" in drawn for row in cells)


@pytest.mark.parametrize("name", ["tree_shape", "length_scaling", "prompt_length"])
def test_every_line_has_a_path_in_its_methods_colour(name: str) -> None:
    """Guards against lines that come out empty, and colours that panels side by side mix up."""
    drawn = texts(figure(name).draw(synthetic.make())).split("<path")
    lines = [mark.split(">")[0] for mark in drawn if 'aria-roledescription="line mark"' in mark]
    assert lines and all(' d="M' in line for line in lines)
    methods = {"tree_shape": ["dynatree_threshold"], "length_scaling": experiments.LENGTH_METHODS}
    wanted = {theme.colour(method) for method in methods.get(name, experiments.PROMPT_METHODS)}
    assert {tone for line in lines for tone in theme.COLOURS.values() if tone in line} == wanted


def test_one_line_of_settings_makes_no_heat_map() -> None:
    """Guards against a heat map of one row."""
    tables = synthetic.make(datasets=("wikipedia",), few=True)
    drawn, said = texts(figure("tree_shape").draw(tables)), figure("tree_shape").caption(tables)
    assert "branch B" not in drawn and "best of all 2 settings of DynaTree, threshold: D 8" in said
    assert "Next D 3, B 3, tau 0.03, N 64 has" in said and "DynaTree has" in said and said.count("against it") == 2


def test_settings_without_a_common_line_are_refused() -> None:
    """Guards against an empty figure of settings that differ in two knobs at once."""
    apart = synthetic.summary("tree_shape", "dynatree_threshold", {"D3_B2_tau0.03_N64": 0.9, "D8_B3_tau0.03_N64": 1.2})
    with pytest.raises(UserError, match="two values"):
        figure("tree_shape").draw({"summary": apart})


def ablated(speedups: dict[tuple[str, str], list[float]]) -> dict[str, pa.Table]:
    """An ablation of the given speedups per (method, settings), one a prompt."""
    rows: dict[str, list[Row]] = {"summary": [], "runs": []}
    for drafted, ((method, settings), values) in enumerate(speedups.items()):
        key = {"experiment": "ablation", "method": method, "settings": settings, "dataset": "wikipedia"}
        key |= {"prompt_tokens": 128, "batch": 1}
        mean = sum(values) / len(values)
        rows["summary"].append(key | {"metric": "speedup", "prompts": len(values), "value": mean, "significant": False})
        rows["runs"] += [
            key
            | {"prompt_id": f"{place}", "document_id": f"{place}", "repeat": 0, "speedup": value, "drafted": drafted}
            for place, value in enumerate(values)
        ]
    return {name: table(name, found) for name, found in rows.items()}


def test_a_difference_is_taken_prompt_by_prompt() -> None:
    """Guards against intervals that prompts of different speed blur: the variant is 10 % slower on each."""
    prompts = [1.0 + place / 2 for place in range(10)]
    tables = ablated({("dynatree", "D63"): prompts, ("without_lookup", "D63"): [0.9 * value for value in prompts]})
    caption = figure("ablation").caption(tables)
    assert "slowest variant: Without lookup, \u221210 % [\u221210 %, \u221210 %], significant" in caption
    assert "Fastest of DynaTree and its variants: DynaTree." in caption


def test_a_batch_counts_as_one_measurement() -> None:
    """Guards against a verdict from twelve prompts that were timed in two batches."""
    tables = ablated({("dynatree", "D63"): [1.0] * 12, ("without_lookup", "D63"): [0.9] * 12})
    assert "significant" in figure("ablation").caption(tables)
    for name in tables:
        rows = [row | {"batch": 6} for row in tables[name].to_pylist()]
        grouped = [
            row | ({"group": int(row["prompt_id"]) // 6} if name == "runs" else {"measurements": 2}) for row in rows
        ]
        tables[name] = table(name, grouped)
    assert "Without lookup, \u221210 %, inconclusive" in figure("ablation").caption(tables)


def test_a_difference_is_taken_within_a_format() -> None:
    """Guards against runs of one format that take the place of another's on the same prompt."""
    prompts = [1.0 + place / 2 for place in range(10)]
    found: dict[str, list[Row]] = {"summary": [], "runs": []}
    for dtype, kept in (("float32", 0.9), ("int8", 0.5)):
        less = [kept * value for value in prompts]
        tables = ablated({("dynatree", "D63"): prompts, ("without_lookup", "D63"): less})
        for name, rows in found.items():
            rows += [row | {"dtype": dtype} for row in tables[name].to_pylist()]
    caption = figure("ablation").caption({name: table(name, rows) for name, rows in found.items()})
    assert all(f"Without lookup, \u2212{change} % [" in caption for change in (10, 50))


@pytest.mark.parametrize(
    ("name", "column", "other", "said"),
    [
        ("ablation", "dtype", "int8", "gutenberg, dtype int8"),
        ("tree_shape", "dtype", "int8", "gutenberg, dtype int8"),
        ("prompt_length", "dtype", "int8", "gutenberg, dtype int8"),
        ("prompt_length", "batch", 4, "gutenberg, batch 4"),
        ("batch_size", "dtype", "int8", "gutenberg, dtype int8"),
        ("batch_size", "prompt_tokens", 500, "gutenberg, prompt tokens 500"),
        ("precision", "batch", 4, "gutenberg, batch 4"),
    ],
)
def test_other_conditions_have_panels_of_their_own(name: str, column: str, other: Any, said: str) -> None:
    """Guards against formats, batches or lengths that are drawn, and told, as one."""
    tables = dict(synthetic.make())
    drawn = texts(figure(name).draw(tables))
    assert said not in drawn
    for part in ("summary", "runs"):
        rows = tables[part].to_pylist()
        own = [row for row in rows if row["experiment"] == name]
        # Synthetic rows need not say their format.
        added = [row | {column: row[column] or "float32"} for row in own] + [row | {column: other} for row in own]
        tables[part] = table(part, [*(row for row in rows if row["experiment"] != name), *added])
    both = texts(figure(name).draw(tables))
    assert said in both and both.count("line mark") == 2 * drawn.count("line mark")
    assert figure(name).caption(tables)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_full_variant_is_found_whatever_the_order(backwards: bool) -> None:
    """Guards against taking the first settings of the table for the full method."""
    settings = ["D8_B3_tau0.03_N64", "D8_B3_tauNone_N64", "D8_B3_tau0.03_NNone", "D5_B3_tau0.03_N64"]
    tables = ablated({("dynatree_threshold", name): [1.2, 1.3] for name in sorted(settings, reverse=backwards)})
    block = figure("ablation")._blocks(tables)[0]
    assert block.full["settings"] == settings[0]
    assert {row["label"] for row in block.rows} == {
        "DynaTree, threshold", "Without pruning (tau none)", "Without node budget (N none)", "D 5",
    }  # fmt: skip


def test_variants_are_in_their_block_and_the_static_tree_in_both() -> None:
    """Guards against comparing the default's variants with the threshold policy."""
    first, second = figure("ablation")._blocks(synthetic.make(datasets=("wikipedia",)))
    assert {row["method"] for row in first.rows} == {"dynatree_threshold", "fixed_d5_b2", "optimal"}
    assert {row["method"] for row in second.rows} == {
        *(method for method, _ in experiments.ABLATED if method.startswith("without_")), "dynatree", "optimal",
    }  # fmt: skip


def test_an_ablation_that_beats_nothing_says_so() -> None:
    """Guards against praising the best of variants that are all slower than autoregressive decoding."""
    tables = ablated({("dynatree", "D63"): [0.8, 0.9], ("without_lookup", "D63"): [0.7, 0.7]})
    assert "and its variants: autoregressive decoding." in figure("ablation").caption(tables)


def test_a_variant_that_does_the_same_is_no_variant() -> None:
    """Guards against a part that is said to cost something where the limit that was lifted never held."""
    tables = ablated({("dynatree_threshold", "D8_N64"): [1.0, 1.1], ("dynatree_threshold", "D8_NNone"): [1.2, 1.3]})
    same = [row | {"drafted": 7} for row in tables["runs"].to_pylist()]
    tables["runs"] = table("runs", same)
    caption = figure("ablation").caption(tables)
    assert "Without node budget (N none) takes the very same rounds, so its +19 % is chance" in caption
    assert "and its variants: DynaTree, threshold." in caption
    assert "same rounds" in texts(figure("ablation").draw(tables))


def test_an_ablation_of_sampling_is_no_kind_of_text() -> None:
    """Guards the figure of kinds of text, which would show the methods of such an experiment as if they were ours."""
    said = figure("repetition").caption(synthetic.make())
    assert "Shared noise" not in said and "draft_noise" not in said


def test_what_shared_noise_is_worth_is_said_of_each_temperature() -> None:
    """Guards against variants that change places, and a winner that is not the data's."""
    said = {winner: figure("draft_noise").caption(synthetic.make(winner=winner)) for winner in ("dynatree", "linear")}
    for temperature in (0.7, 1):
        assert f"Sampled, temperature {temperature}: gutenberg" in said["dynatree"]
    assert "Shared noise has most drafted" in said["dynatree"] and "No noise has most drafted" in said["linear"]
    found = figure("draft_noise")._found(synthetic.make())
    assert all([row["method"] for row in rows["speedup"]] == [*experiments.NOISES][1:] for rows in found.values())


def test_two_experiments_of_one_temperature_are_both_shown() -> None:
    """Guards against the second in the place of the first."""
    tables = synthetic.make(datasets=("wikipedia",))
    alike = [row | {"kind": "sampled, temperature 1"} for row in tables["summary"].to_pylist()]
    found = figure("draft_noise")._found({"summary": table("summary", alike)})
    title = "Sampled, temperature 1: wikipedia"
    assert [*found] == [title, f"{title}, draft_noise_cool"]


def ratio(method: str, value: float, x: int = 0, significant: bool = False) -> Row:
    return {"method": method, "settings": "", "value": value, "low": None, "high": None, "x": x} | {
        "prompts": 4, "significant": significant,
    }  # fmt: skip


NAMES = {(method, ""): theme.display(method) for method in ("linear", "dynatree")}


def test_autoregressive_decoding_is_said_to_win() -> None:
    """Guards against calling the best of slow methods fastest."""
    said = captions.fastest([ratio("linear", 0.9), ratio("dynatree", 0.95)], NAMES)
    assert said.startswith("no method beats autoregressive decoding; closest is DynaTree with 0.95×, inconclusive")


def test_each_length_has_its_own_winner() -> None:
    """Guards against one winner for all lengths."""
    rows = [ratio("linear", 1.5, 100), ratio("dynatree", 1.2, 100), ratio("linear", 0.8, 1000)]
    said = captions.fastest_along([*rows, ratio("dynatree", 0.9, 1000)], NAMES, "tokens", "wikipedia")
    assert said[0] == "On wikipedia, fastest: Linear chain at 100; autoregressive decoding at 1,000 tokens."
    assert "no method beats" in said[1] and "fastest is Linear chain" in said[2]


@given(st.lists(st.floats(0, 200), min_size=1, max_size=8))
def test_labels_keep_their_distance_and_their_order(positions: list[float]) -> None:
    """Guards against labels on one another, and labels that change places."""
    moved = placement.apart(positions, 13.0)
    pairs = sorted(zip(positions, moved, strict=True))
    assert all(later[1] - earlier[1] >= 13.0 - 1e-6 for earlier, later in itertools.pairwise(pairs))
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)


def test_labels_that_do_not_collide_stay() -> None:
    """Guards against spreading labels that had room."""
    assert placement.apart([40.0, 0.0, 13.0], 13.0) == [40.0, 0.0, 13.0]


def test_synthetic_rows_keep_the_schema() -> None:
    """Guards against a column that the tables do not have, which Arrow would silently drop."""
    rows: dict[str, list[Row]] = {"summary": [], "runs": [], "rounds": []}
    experiments.add(rows, random.Random(0), "dynatree", ("wikipedia",), 3, True, False)
    assert all(set(row) <= set(TABLES[name].names) for name, found in rows.items() for row in found)
