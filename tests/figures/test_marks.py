"""What dots and tones say: significance, chance, single prompts, cells that differ; and that legends say the same."""

from typing import Any

import pyarrow as pa
import pytest
import tables as synthetic
import vl_convert

from dynatree import plugins
from dynatree.figures import memory, tree_shape
from dynatree.figures.shared import heat, legends, marks, queries, ranking

Row = dict[str, Any]
SWEEPS = ("length_scaling", "prompt_length", "batch_size", "precision", "ablation", "tree_shape")


def svg(name: str, tables: dict[str, Any]) -> str:
    return vl_convert.vegalite_to_svg(plugins.load("figures", name).draw(tables).to_dict())


@pytest.mark.parametrize(
    ("significant", "fill", "size"),
    [(True, "#abc", marks.COMPARED), (False, "white", marks.COMPARED), (None, "#abc", marks.PLAIN)],
)
def test_a_dot_says_one_thing(significant: bool | None, fill: str, size: float) -> None:
    """Guards against a filled dot where nothing was compared, or where it could be chance."""
    made = marks.dot({"significant": significant}, "#abc")
    assert (made["tone"], made["fill"], made["size"]) == ("#abc", fill, size)


def test_the_baseline_is_neutral() -> None:
    """Guards against a baseline that looks significantly equal to itself, as with one prompt it cannot be."""
    tables = synthetic.make(datasets=("wikipedia",), prompts=1, intervals=False)
    drawn = plugins.load("figures", "datasets").draw(tables).to_dict()
    rows = [row for found in drawn["datasets"].values() for row in found]
    sizes = {row["method"]: row["size"] for row in rows if "size" in row and row.get("metric") == "speedup"}
    assert sizes.pop("autoregressive") == marks.PLAIN
    assert sizes and set(sizes.values()) == {marks.COMPARED}
    assert legends.BASELINE.label in {row.get("label") for found in drawn["datasets"].values() for row in found}


@pytest.mark.parametrize("name", SWEEPS)
def test_few_prompts_are_shown_one_by_one(name: str) -> None:
    """Guards against a mean of two prompts that looks like one of twenty."""
    few, many = (svg(name, synthetic.make(datasets=("wikipedia",), prompts=prompts)) for prompts in (4, 12))
    assert "one prompt" in few
    assert "one prompt" not in many


def test_a_row_s_single_prompts_are_its_own() -> None:
    """Guards against dots of another method, size or format beside a mean."""
    tables = synthetic.make(prompts=3)
    rows = queries.rows(tables, "summary", experiment="tree_shape", metric="speedup", method="dynatree_threshold")
    for row in rows:
        own = marks.singles([row], tables)
        assert len(own) == 3
        # They stray by 4 % from their mean.
        assert all(abs(one["value"] / row["value"] - 1) < 0.041 and one["low"] is None for one in own)
    assert marks.singles([row | {"prompts": 10} for row in rows], tables) == []


def test_a_heat_map_shows_no_structure_that_chance_can_make() -> None:
    """Guards against shades from the least to the largest of values that are within each other's intervals."""
    cells = [{"D": str(d), "B": str(b), "value": 1.17 + 0.01 * d + 0.02 * b} for d in (3, 8) for b in (2, 4)]

    def tones(noise: float) -> set[str]:
        rows, runs = [], []
        for place, cell in enumerate(cells):
            key = {"experiment": "tree_shape", "method": "m", "settings": f"D{cell['D']}_B{cell['B']}", "dataset": "d"}
            key |= {"prompt_tokens": 1, "batch": 1, "dtype": "float32"}
            rows.append(key | {"knobs": {"D": cell["D"], "B": cell["B"]}, "value": cell["value"]})
            for prompt in range(16):
                stray = 1 + noise if prompt >> place & 1 else 1 - noise
                run = {"prompt_id": str(prompt), "document_id": str(prompt), "repeat": 0}
                runs.append(key | run | {"speedup": cell["value"] * stray})
        drawn = tree_shape._heat(rows, runs).to_dict()
        return {row["tone"] for found in drawn["datasets"].values() for row in found if "tone" in row}

    assert tones(0.3) == {heat.NEUTRAL}
    assert tones(0.0) == {heat.NEUTRAL, heat.APART}


def test_words_on_tones_can_be_read() -> None:
    """Guards against dark words on dark ground: contrast of at least 4.5 (WCAG 2.1, 1.4.3)."""

    def luminance(tone: str) -> float:
        parts = [int(tone[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for tone in (heat.shade(0.0), heat.shade(0.5), heat.shade(1.0), heat.NEUTRAL, heat.APART):
        assert (luminance(tone) + 0.05) / (luminance("#222222") + 0.05) > 4.5


def test_what_a_process_loaded_is_told_from_what_the_request_took() -> None:
    """Guards against most of the memory in one unexplained part."""
    ((_, rows),) = memory._places(synthetic.make()).items()
    for row in rows:
        parts = sum(row[column] for column, _ in memory.PARTS.values())
        assert parts == pytest.approx(row["peak_mib"])
        assert row["before"] == pytest.approx(row["loaded_mib"] - row["weights_mib"] - row["drafter_weights_mib"])


def test_each_kind_of_text_has_its_own_axis_and_a_tick_its_legend() -> None:
    """Guards against penalised text squeezed into a corner of greedy text's axis, and an unexplained mark."""
    drawn = svg("benchmark", synthetic.make())
    assert "worst prompt" in drawn and any(entry.shape == ranking.TICK for entry in ranking.KEY)
    rows = queries.rows(synthetic.make(), "benchmark", dataset="all", part="whole", baseline="transformers")
    scales = [ranking.scale([row for row in rows if row["text"] == text]) for text in ("greedy", "penalised")]
    assert scales[0].domain != scales[1].domain


@pytest.mark.parametrize("name", ["benchmark", "llama_cpp"])
def test_a_kind_of_text_is_explained_by_its_name(name: str) -> None:
    """Guards against panels of "penalised" text that nothing explains, and against greedy text explained as greedy."""
    drawn = svg(name, synthetic.make())
    assert "greedy, repetition penalty 1.2; 4 prompts" in drawn and ">4 prompts" in drawn


def test_the_benchmark_s_formats_have_panels_of_their_own() -> None:
    """Guards against two formats as one method's two dots on a line, and a winner whose format nobody says."""
    tables = synthetic.make()
    rows = tables["benchmark"].to_pylist()
    other = [row | {"dtype": "float32"} for row in rows]
    tables = tables | {"benchmark": pa.Table.from_pylist([*rows, *other], schema=tables["benchmark"].schema)}
    drawn, figure = svg("benchmark", tables), plugins.load("figures", "benchmark")
    for text in ("greedy (int4)", "penalised (int4)", "greedy (float32)", "penalised (float32)"):
        assert f">{text}<" in drawn and f">{text}, along the output<" in drawn
    assert "On greedy (int4) text DynaTree is fastest" in figure.caption(tables)


def test_the_legend_names_only_what_is_drawn() -> None:
    """Guards against a key of marks that the figure lacks."""
    assert legends.significance([{"significant": None}]) == [legends.PLAIN]
    assert legends.significance([{"significant": False}], [{}]) == [*legends.SIGNIFICANCE, legends.SINGLE]
