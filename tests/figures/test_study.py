"""What the figures of memory, latency, batches, perplexities and chains say, on tables whose answer is known."""

from typing import Any

import pyarrow as pa
import pytest
import tables as synthetic
import vl_convert

from dynatree import plugins
from dynatree.errors import UserError
from dynatree.tables.schema import TABLES

Row = dict[str, Any]


def caption(name: str, tables: dict[str, pa.Table]) -> str:
    text: str = plugins.load("figures", name).caption(tables)
    return text


def svg(name: str, tables: dict[str, pa.Table]) -> str:
    return vl_convert.vegalite_to_svg(plugins.load("figures", name).draw(tables).to_dict())


def changed(tables: dict[str, pa.Table], name: str, change: Any) -> dict[str, pa.Table]:
    """The tables with every row of the table `name` passed through `change`; None drops it."""
    rows = [new for row in tables[name].to_pylist() if (new := change(row)) is not None]
    return tables | {name: pa.Table.from_pylist(rows, schema=TABLES[name])}


def batches(speedups: dict[int, float], prompts: int = 12) -> dict[str, pa.Table]:
    """A summary of one method's speedups by batch size, and throughputs that rise with the size."""
    rows = [
        {"experiment": "batch_size", "method": "linear", "settings": "K3", "dataset": "d", "prompt_tokens": 9}
        | {"batch": batch, "metric": metric, "prompts": prompts, "documents": prompts, "value": value}
        | {"measurements": -(-prompts // batch)}
        | {"low": value - 0.1, "high": value + 0.1, "significant": abs(value - 1) > 0.1 and prompts >= 10}
        for batch, speedup in speedups.items()
        for metric, value in (("speedup", speedup), ("throughput", 20.0 * batch))
    ]
    return {"summary": pa.Table.from_pylist(rows, schema=TABLES["summary"])}


@pytest.mark.parametrize(
    ("speedups", "said"),
    [
        ({1: 2.0, 2: 1.5, 4: 0.9, 8: 0.7}, "its gain ends at 4, with 0.90×"),
        ({1: 2.0, 2: 0.9, 4: 1.2, 8: 0.7}, "it gains at 1 and 4, not at 2 and 8"),
        ({1: 1.05, 2: 0.9, 4: 0.9, 8: 1.1}, "it gains at 1 and 8, not at 2 and 4"),
        ({1: 2.0, 2: 1.5}, "its gain does not end among these sizes"),
        ({1: 0.9, 2: 0.8}, "it gains at no size"),
    ],
)
def test_batches_say_where_the_gain_ends(speedups: dict[int, float], said: str) -> None:
    """Guards against an end of the gain that the data do not have, or one that a later size contradicts."""
    text = caption("batch_size", batches(speedups))
    assert said in text and f"{speedups[1]:.2f}× [" in text
    assert f"Most tokens per second: Linear chain at {max(speedups)}" in text


def test_batches_of_few_prompts_are_inconclusive() -> None:
    """Guards against a claim that the number of prompts does not carry."""
    text = caption("batch_size", batches({1: 2.0, 2: 0.5}, prompts=4))
    assert "inconclusive with 4 prompts" in text and "inconclusive with 2 batches" in text


def test_memory_is_told_against_plain_decoding() -> None:
    """Guards against a difference with the wrong sign or baseline, and keys and values of the wrong method."""
    peaks = {"autoregressive": 1000.0, "linear": 1300.0, "dynatree": 950.0}
    tables = changed(
        synthetic.make(),
        "memory",
        lambda row: row | {"peak_mib": peaks[row["method"]]} if row["method"] in peaks else None,
    )
    text = caption("memory", tables)
    assert "DynaTree needs least with 950 MiB and Linear chain most with 1,300 MiB" in text
    assert "the peak is 50.0 MiB less (DynaTree) to 300 MiB more (Linear chain) than autoregressive decoding's" in text
    assert "Keys and values take at most 10.2 MiB (DynaTree)" in text
    assert all(f">{words}<" in svg("memory", tables) for words in ("1,000", "1,300", "950"))


def test_latency_names_the_best_of_each_metric() -> None:
    """Guards against a smallest throughput or a largest wait that is called best."""
    best = {"ttft_ms": "transformers", "tpot_ms": "linear", "throughput": "fixed_tree"}
    value = {"ttft_ms": (7.0, 9.0), "tpot_ms": (7.0, 9.0), "throughput": (9.0, 7.0)}

    def change(row: Row) -> Row:
        if row["experiment"] != "headline" or row["metric"] not in best:
            return row
        chosen = value[row["metric"]][row["method"] != best[row["metric"]]]
        return row | {"value": chosen, "low": chosen - 0.5, "high": chosen + 0.5}

    text = caption("latency", changed(synthetic.make(datasets=("wikipedia",)), "summary", change))
    assert "time to the first token: Transformers 7.00 [6.50, 7.50] ms, next" in text
    assert "time per later token: Linear chain 7.00" in text
    assert "throughput: Fixed tree 9.00" in text and text.count("22% below") == 1


def test_costs_after_other_contexts_than_the_drafter_s() -> None:
    """Guards against a figure without the target's curve where the drafter's window is below all contexts."""
    window = {64: 16, 512: 96}
    tables = changed(
        synthetic.make(),
        "costs",
        lambda row: row | ({"context": window[row["context"]]} if row["part"] == "draft" else {}),
    )
    drawn = svg("cost_curve", tables)
    assert "Time of a forward after 64 tokens" in drawn and ">draft level (after 96 tokens)<" in drawn
    assert ">draft level<" in svg("cost_curve", synthetic.make())
    assert caption("cost_curve", tables) == caption("cost_curve", synthetic.make())


def test_perplexities_tell_flips_and_the_largest_difference() -> None:
    """Guards against outputs that are said to coincide though one does not, and against a method that hides it."""
    tables = synthetic.make(prompts=3, datasets=("wikipedia",))

    def exact(row: Row) -> Row:
        return row | {"identical": True, "flips": 0, "perplexity": 2.0}

    def one_off(row: Row) -> Row:
        odd = (row["method"], row["prompt_id"], row["experiment"]) == ("linear", "wikipedia:1:128", "headline")
        return exact(row) | ({"identical": False, "flips": 2, "perplexity": 1.6} if odd else {})

    told = caption("perplexity", changed(tables, "runs", exact))
    assert "18 of 18 outputs (3 prompts)" in told and "All perplexities coincide." in told
    told = caption("perplexity", changed(tables, "runs", one_off))
    assert "17 of 18 outputs" in told and "2 tokens of 1 output are not the target's argmax (flips)" in told
    assert "differ most by 25 % (Linear chain on wikipedia)" in told
    assert "Of the 17 pairs without a flip, all coincide." in told
    with pytest.raises(UserError, match="no headline run of autoregressive"):
        caption("perplexity", changed(tables, "runs", lambda row: row if row["method"] == "linear" else None))


def test_perplexities_of_what_is_not_compared_are_shown_apart() -> None:
    """Guards against an error, or outputs that are counted as other ones, where a headline method is not audited."""
    tables = synthetic.make(prompts=3, datasets=("wikipedia",))

    def unknown(*methods: str) -> dict[str, pa.Table]:
        same, apart = {"identical": True, "flips": 0, "perplexity": 2.0}, {"identical": None, "flips": None}
        return changed(tables, "runs", lambda row: row | same | (apart if row["method"] in methods else {}))

    told, drawn = caption("perplexity", unknown("assisted")), svg("perplexity", unknown("assisted"))
    assert "15 of 15 outputs (3 prompts)" in told and "Not compared token for token: Assisted (HF)." in told
    assert "Of the 15 pairs without a flip" in told or "All perplexities coincide." in told
    # The line of the method, and the legend.
    assert drawn.count(">not compared<") == 2 and drawn.count(">3 of 3 identical<") == 5
    assert "not compared" not in svg("perplexity", unknown())
    none = unknown(*synthetic.METHODS[1:])
    assert caption("perplexity", none).startswith("Not compared token for token: ") and svg("perplexity", none)


def test_chains_stand_beside_the_headline_where_they_ran_alike() -> None:
    """Guards against chains that fall out, and against counts of shorter outputs ranked among those of longer ones."""
    alike, apart = synthetic.make(datasets=("wikipedia",)), synthetic.make(datasets=("wikipedia",), few=True)
    for tables in (alike, apart):
        assert all(f"Linear chain K {length}" in svg("acceptance", tables) for length in (6, 8, 10))
    assert "1 prompt of 50 tokens" not in caption("acceptance", alike)
    text = caption("acceptance", apart)
    headline, _, other = text.partition("On wikipedia, 1 prompt of 50 tokens")
    assert "Linear chain K 8" not in headline and "Linear chain K 6" not in other and "K 10" in other


def test_chains_of_other_conditions_are_places_of_their_own() -> None:
    """Guards against a mean over batches and formats that no run was made in."""
    tables = dict(synthetic.make(datasets=("wikipedia",)))
    rows = [row | {"batch": 1} for row in tables["runs"].to_pylist()]
    chains = [row | {"batch": 4} for row in rows if row["experiment"] == "chains"]
    tables["runs"] = pa.Table.from_pylist([*rows, *chains], schema=tables["runs"].schema)
    told = caption("acceptance", tables)
    assert "On wikipedia, batch 1, " in told and "On wikipedia, batch 4, " in told
