"""The protocol's definitions, checked on hand-made records whose metrics can be worked out on paper."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynatree import files
from dynatree.errors import UserError
from dynatree.measuring import audit
from dynatree.tables import bootstrap, comparison, headline, metrics, rounds
from dynatree.tables.metrics import Records
from dynatree.tables.schema import TABLES

MACHINE = {
    "processor": "P",
    "cores": 2,
    "memory_gib": 8,
    "gpu": None,
    "threads": 2,
    "dtype": "float32",
    "python": "3.11.9",
    "torch": "2.13",
    "transformers": "5.24",
}
AUDIT = {"flips": 0, "first_flip": None, "largest_gap": 0.0, "perplexity": 4.0, "repetition": 0.0, "repeated": [0] * 99}
STEP = {"drafted": 0, "depth": 0, "accepted": 0, "emitted": [5], "draft_forwards": 0, "tree": None, "path": None}
# Root 1 with children 7 and 8; 7 has a child 9. The target takes 7, then something else.
TREE = {"tokens": [1, 7, 8, 9], "parents": [-1, 0, 0, 1], "log_probs": [0.0, -0.5, -0.25, -1.5]}
SPECULATED = {
    "drafted": 3,
    "depth": 2,
    "accepted": 1,
    "emitted": [7, 4],
    "draft_forwards": 2,
    "tree": TREE,
    "path": [0, 1],
}


def record(
    method: str,
    rounds: list[dict[str, Any]],
    commits: list[float],
    references: tuple[float, ...] = (0.1, 0.1),
    prompt: str = "d/a/0",
    document: str = "a",
    first: int = 1,
    machine: dict[str, Any] | None = None,
    experiment: str = "headline",
    audit: dict[str, Any] | None = None,
) -> Records:
    """Records of one prompt; a request ends with its last commit."""
    key = {"prompt_id": prompt, "repeat": 0}
    output = {
        **key,
        "document_id": document,
        "prompt_tokens": 3,
        "output_ids": [1] * first + [token for fact in rounds for token in fact["emitted"]],
        "first": first,
        "target_forwards": len(rounds),
        "draft_forwards": sum(fact["draft_forwards"] or 0 for fact in rounds),
        "rounds": rounds,
    }
    timing = {
        **key,
        "batch": 1,
        "batch_tokens": len(output["output_ids"]),
        "seconds": commits[-1],
        "commits": commits,
        "references": list(references),
        "peak_bytes": 3 * 2**20,
    }
    where = {"experiment": experiment, "method": method, "settings": "default", "dataset": "d"}
    return Records(where, [output], [timing], [{**key, **AUDIT, **(audit or {})}], {**MACHINE, **(machine or {})})


def row(*records: Records, method: str) -> dict[str, Any]:
    return next(r for r in metrics.runs(list(records)) if r["method"] == method)


def test_times_of_one_request() -> None:
    """Guards the definitions: tpot leaves the prefill out, throughput does not."""
    got = row(record("autoregressive", [STEP] * 4, [1.0, 1.5, 2.0, 2.5, 3.0]), method="autoregressive")
    assert got["output_tokens"] == 5
    assert got["ttft_ms"] == 1000.0
    assert got["tpot_ms"] == 500.0
    assert got["decode_throughput"] == 2.0
    assert got["throughput"] == pytest.approx(5 / 3)
    assert got["peak_mib"] == 3.0


def test_a_first_commit_of_several_tokens_is_left_out_of_tpot() -> None:
    """Guards against counting drafted tokens of the first commit as decoded after it."""
    got = row(record("assisted", [STEP] * 2, [1.0, 2.0, 3.0], first=3), method="assisted")
    assert got["tpot_ms"] == 1000.0
    assert got["tokens_per_iteration"] == 1.0


def test_counts_of_a_tree_method() -> None:
    """Guards against dividing accepted tokens by nodes, which is another metric, or counting the bonus as accepted."""
    got = row(record("dynatree", [SPECULATED, {**SPECULATED, "depth": 1}], [1.0, 2.0, 3.0]), method="dynatree")
    assert (got["iterations"], got["drafted"], got["drafted_depth"], got["accepted"]) == (2, 6, 3, 2)
    assert got["acceptance_rate"] == pytest.approx(2 / 3)
    assert got["node_efficiency"] == pytest.approx(2 / 6)
    assert got["mean_path_length"] == 1.0
    assert got["tokens_per_iteration"] == 2.0
    assert got["tokens_per_target_forward"] == 2.0


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 30)), min_size=1, max_size=12))
def test_shares_stay_between_nought_and_one(facts: list[tuple[int, int, int]]) -> None:
    """Guards against an acceptance above 100 %, which only a wrong definition gives."""
    rounds = [
        {
            **STEP,
            "depth": depth,
            "accepted": min(accepted, depth),
            "drafted": depth + more,
            "emitted": [5] * (min(accepted, depth) + 1),
        }
        for depth, accepted, more in facts
    ]
    got = row(record("dynatree", rounds, [1.0 + i for i in range(len(rounds) + 1)]), method="dynatree")
    for metric in ("acceptance_rate", "node_efficiency"):
        assert got[metric] is None or 0 <= got[metric] <= 1
    assert (got["acceptance_rate"] is None) == (got["drafted_depth"] == 0)


def test_null_where_nothing_was_drafted_or_nothing_followed() -> None:
    """Guards against a zero (or a crash) that would pull means down."""
    got = row(record("autoregressive", [STEP], [1.0, 2.0]), method="autoregressive")
    assert got["acceptance_rate"] is got["node_efficiency"] is None
    lone = row(record("autoregressive", [], [1.0]), method="autoregressive")
    for metric in ("tpot_ms", "decode_throughput", "tokens_per_iteration", "tokens_per_target_forward"):
        assert lone[metric] is None
    present = {r["metric"] for r in metrics.summary([lone])}
    assert "tpot_ms" not in present
    assert "throughput" in present


def test_speedup_is_of_normalised_times() -> None:
    """Guards against comparing seconds of a slow moment with seconds of a fast one."""
    autoregressive = record("autoregressive", [STEP] * 2, [1.0, 2.0, 4.0], references=(0.1, 0.3))
    theirs = record("transformers", [STEP] * 2, [1.0, 2.0, 3.0], references=(0.1, 0.1))
    fast = record("dynatree", [SPECULATED], [1.0, 2.0], references=(0.4, 0.4))
    got = row(autoregressive, theirs, fast, method="dynatree")
    assert got["autoregressive_step_ms"] == pytest.approx(400)
    assert got["normalised_seconds"] == pytest.approx(5)
    assert got["speedup"] == pytest.approx(20 / 5)
    assert got["speedup_transformers"] == pytest.approx(30 / 5)
    own = row(autoregressive, theirs, fast, method="autoregressive")
    assert own["speedup"] == 1.0
    assert own["autoregressive_step_spread"] == pytest.approx(0.1 / 0.2)


def test_a_stall_of_the_clock_is_not_a_slow_machine() -> None:
    """Guards a slowest prompt that the reference alone was slow for; where half of a run was slow, its step is slow."""
    stalled, slow, slower = [5.0, 5.0, 5.0, 16.0], [5.0, 5.0, 7.0, 7.0], [5.0, 5.0, 16.0, 16.0]
    for references, step in ((stalled, 5.625), (slow, 6.0), (slower, 10.5)):
        assert metrics.step_seconds(references) == pytest.approx(step)
    # Of three, those around them tell a stall; where the machine was slow throughout, its step is slow.
    usual = [6.0, 6.5, 7.0, 6.5, 6.0, 12.0, 5.5, 16.0, 6.5]
    for few, step in (
        ([12.0, 5.5, 16.0], 5.5),
        ([6.5, 6.0, 16.0], 6.25),
        ([16.0, 6.0], 11.0),
        ([12.0, 12.5, 13.0], 12.5),
        ([10.0, 16.0, 17.0], 43 / 3),
    ):
        assert metrics.step_seconds(few, usual) == pytest.approx(step)
    assert metrics.step_seconds([12.0, 12.0, 5.5]) == pytest.approx(29.5 / 3)
    (run,) = metrics.runs([record("autoregressive", [STEP], [1.0, 2.0], references=(1.0, 1.0, 1.0, 5.0))])
    assert run["autoregressive_step_ms"] == pytest.approx(1125)
    # Those of all prompts of a job stand around those of each.
    job, other = (
        record("autoregressive", [STEP], [1.0, 2.0], references=samples, prompt=f"d/{samples[0]}/0")
        for samples in ((1.2, 0.5, 1.6), (0.6, 0.6, 0.6))
    )
    for part in ("outputs", "timings", "audit"):
        getattr(job, part).extend(getattr(other, part))
    assert [run["autoregressive_step_ms"] for run in metrics.runs([job])] == pytest.approx([500, 600])
    assert run["autoregressive_step_spread"] == pytest.approx(np.std([1, 1, 1, 5]) / 2)


def test_times_are_at_the_usual_pace() -> None:
    """Guards against tokens per second of a slow minute beside those of a fast one; raw seconds stay what they were."""
    records = [record("autoregressive", [STEP], [1.0, 2.0], references=(0.1, 0.1), prompt=f"d/a/{n}") for n in range(2)]
    slow = record("dynatree", [STEP], [2.0, 4.0], references=(0.2, 0.2))
    rows = metrics.runs([*records, slow])
    own = next(row for row in rows if row["method"] == "dynatree")
    assert (own["seconds"], own["pace"], own["ttft_ms"], own["tpot_ms"]) == pytest.approx((4.0, 0.5, 1000, 1000))
    assert own["throughput"] == pytest.approx(rows[0]["throughput"]) == pytest.approx(1.0)
    found = headline.pace(rows, {})["autoregressive_step"]
    assert found == {"usual_ms": 100, "least_ms": 100, "most_ms": 200, "usual_spread": 0, "most_spread": 0}


def test_a_run_is_compared_with_the_same_prompt_and_experiment_only() -> None:
    """Guards against a baseline of other lengths or another text."""
    autoregressive = record("autoregressive", [STEP], [1.0, 2.0])
    other_prompt = record("dynatree", [SPECULATED], [1.0, 2.0], prompt="d/b/0")
    other_experiment = record("linear", [SPECULATED], [1.0, 2.0], experiment="chains")
    for method in ("dynatree", "linear"):
        got = row(autoregressive, other_prompt, other_experiment, method=method)
        assert got["speedup"] is got["speedup_transformers"] is got["identical"] is None


def test_formats_are_compared_within_themselves() -> None:
    """Guards against a speedup that is a format's, and against another format's pace."""
    machines = {"float32": (0.4, 4.0, 2.0), "int4": (0.1, 1.0, 0.8)}
    records = [
        record(method, [STEP], [seconds / 2, seconds], references=(step, step), machine={"dtype": dtype})
        for dtype, (step, *both) in machines.items()
        for method, seconds in zip(("autoregressive", "dynatree"), both, strict=True)
    ]
    rows = metrics.runs(records)
    assert [row["dtype"] for row in rows] == ["float32", "float32", "int4", "int4"]
    assert [row["speedup"] for row in rows] == pytest.approx([1, 2, 1, 1.25])
    assert {row["pace"] for row in rows} == {1.0}
    named = {f"results/precision/{record.dtype}/d": record.machine for record in records}
    assert metrics.same_machine({**named, "results/runs/d": records[0].machine}) == records[0].machine
    with pytest.raises(UserError, match="dtype is 'float32'"):
        metrics.same_machine({"results/runs/a/d": records[0].machine, "results/runs/b/d": records[2].machine})


def test_outputs_are_compared_with_those_of_float32() -> None:
    """Guards against a format compared with itself, or with another method, and against a no where nothing is known."""
    found = metrics.runs(
        [
            record("dynatree", [{**STEP, "emitted": [token]}], [1.0, 2.0], machine={"dtype": dtype})
            for dtype, token in (("float32", 5), ("int8", 5), ("int4", 6))
        ]
        + [record("autoregressive", [STEP], [1.0, 2.0], machine={"dtype": "int4"})]
    )
    same = {(one["method"], one["dtype"]): one["identical_float32"] for one in found}
    assert same == {
        ("dynatree", "float32"): True,
        ("dynatree", "int8"): True,
        ("dynatree", "int4"): False,
        ("autoregressive", "int4"): None,
    }


def test_a_text_s_perplexity_is_of_a_format(tmp_path: Path) -> None:
    """Guards against records without a format, which earlier versions wrote, that nothing reads any more."""
    files.write_json(tmp_path / "old.json", {"dataset": "d", "perplexity": 2.0})
    assert metrics.perplexity(tmp_path / "old.json") == {"dataset": "d", "dtype": None, "perplexity": 2.0}


def test_outputs_of_other_lengths_are_not_compared() -> None:
    """Guards against a speedup over autoregressive decoding's shorter output, left by a run of other sizes."""
    longer = record("autoregressive", [STEP] * 2, [1.0, 2.0, 3.0])
    rows = metrics.runs([longer, record("dynatree", [STEP], [1.0, 2.0])])
    assert [row["speedup"] for row in rows] == [1.0, None]


def test_identical_compares_tokens() -> None:
    """Guards against calling outputs equal because they are equally long."""
    autoregressive = record("autoregressive", [{**STEP, "emitted": [7]}, {**STEP, "emitted": [4]}], [1.0, 2.0, 3.0])
    same = record("dynatree", [SPECULATED], [1.0, 2.0])
    differs = record("linear", [{**SPECULATED, "emitted": [7, 3]}], [1.0, 2.0])
    assert row(autoregressive, same, method="dynatree")["identical"] is True
    assert row(autoregressive, differs, method="linear")["identical"] is False


@pytest.mark.parametrize(
    "difference",
    [{"processor": "Q"}, {"threads": 1}, {"dtype": "float64"}, {"torch": "2.12"}, {"gpu": "G"}],
    ids=lambda difference: next(iter(difference)),
)
def test_timings_of_unlike_machines_are_refused(difference: dict[str, Any]) -> None:
    """Guards against a speedup that is the machine's, the threads' or the precision's."""
    autoregressive = record("autoregressive", [STEP], [1.0, 2.0])
    other = record("dynatree", [SPECULATED], [1.0, 2.0], machine=difference)
    key, value = next(iter(difference.items()))
    with pytest.raises(UserError, match=f"{key} is {MACHINE[key]!r} for a but {value!r} for tree/timings.json"):
        metrics.same_machine({"a": autoregressive.machine, "tree/timings.json": other.machine})


def test_memory_size_does_not_make_a_machine_another() -> None:
    """Guards against refusing the same machine with another memory limit."""
    machines = {
        name: record(name, [STEP], [1.0, 2.0], machine={"memory_gib": size}).machine
        for name, size in (("a", 8), ("b", 16))
    }
    assert metrics.same_machine(machines)["threads"] == 2


def test_summary_takes_geometric_means_of_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a mean of ratios that favours the method, and against one for additive metrics."""
    monkeypatch.setattr(bootstrap, "MINIMUM_GROUPS", 2)
    records = []
    for document, seconds in (("a", 1.0), ("b", 4.0)):
        where = {"prompt": f"d/{document}/0", "document": document, "audit": {"largest_gap": seconds}}
        records.append(record("autoregressive", [STEP] * 2, [0.5, 1.0, 2.0], **where))
        records.append(record("dynatree", [SPECULATED], [0.5, seconds], **where))
    rows = {r["metric"]: r for r in metrics.summary(metrics.runs(records)) if r["method"] == "dynatree"}
    assert rows["speedup"]["value"] == pytest.approx(1.0)
    assert rows["seconds"]["value"] == pytest.approx(2.0)
    assert rows["largest_gap"]["value"] == pytest.approx(2.5)
    assert rows["speedup"]["low"] == pytest.approx(0.5)
    assert rows["speedup"]["high"] == pytest.approx(2.0)
    assert rows["speedup"]["significant"] is False
    assert rows["seconds"]["significant"] is None
    assert {rows["speedup"][name] for name in ("prompts", "documents", "measurements")} == {2}


@pytest.mark.parametrize(("prompts", "expected"), [(9, False), (10, True)])
def test_a_speedup_is_significant_from_ten_prompts_on(prompts: int, expected: bool) -> None:
    """Guards against counting repeats or documents instead of prompts."""
    records = []
    for number in range(prompts):
        where = {"prompt": f"d/{number}/0", "document": str(number)}
        records.append(record("autoregressive", [STEP] * 2, [0.5, 1.0, 2.0], **where))
        records.append(record("dynatree", [SPECULATED], [0.5, 1.0], **where))
    rows = {r["metric"]: r for r in metrics.summary(metrics.runs(records)) if r["method"] == "dynatree"}
    assert rows["speedup"]["significant"] is expected


def test_no_interval_for_one_document() -> None:
    """Guards against intervals over prompts of a single text."""
    runs = metrics.runs([record("autoregressive", [STEP], [1.0, 2.0], prompt=f"d/a/{i}") for i in range(3)])
    for summary in metrics.summary(runs):
        assert summary["low"] is summary["high"] is None


def test_rounds_count_tokens_up_to_each_commit() -> None:
    """Guards the length curve: the time to reach a length is that of the commit that reaches it."""
    rows = rounds.rounds([record("dynatree", [SPECULATED, STEP], [1.0, 2.0, 2.5])])
    assert [r["output_tokens"] for r in rows] == [3, 4]
    assert [r["commit_ms"] for r in rows] == [2000.0, 2500.0]
    assert [r["round"] for r in rows] == [0, 1]


def test_parts_share_a_rounds_time_among_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards speed by place: prefill left out, quarters by tokens, loops whole, paired by prompt."""
    assert rounds.REPEATED_NGRAM == audit.REPETITION_ORDER
    monkeypatch.setattr(rounds, "REPEATED_NGRAM", 2)
    flags = {"repeated": [0, 0, 0, 1, 1, 1, 0, 0]}
    autoregressive = record("autoregressive", [STEP] * 7, [1.0 + 0.5 * i for i in range(8)], audit=flags)
    pair = {**STEP, "emitted": [5, 5]}
    other = record("dynatree", [pair, pair, STEP, pair], [9.0, 9.5, 9.75, 10.25, 10.5], (0.2, 0.2), audit=flags)
    rows = {(r["method"], r["part"]): r for r in rounds.parts([other, autoregressive])}
    assert [rows["autoregressive", f"quarter {n}"]["tokens"] for n in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert all(
        r["normalised_seconds_per_token"] == pytest.approx(5) for (method, _), r in rows.items() if method != "dynatree"
    )
    own = {part: r for (method, part), r in rows.items() if method == "dynatree"}
    # Tokens 1 to 7 took 0.25, 0.25, 0.125, 0.125, 0.5, 0.125, 0.125 s, an autoregressive step 0.2 s.
    assert own["quarter 2"]["normalised_seconds_per_token"] == pytest.approx((0.25 + 0.125) / 2 / 0.2)
    # Flagged are tokens 3 to 5, each the last of two that occurred earlier.
    assert own["loops"]["tokens"] == 4 and own["new text"]["tokens"] == 3
    assert own["loops"]["speedup"] == pytest.approx(5 / (1.0 / 4 / 0.2))
    assert own["new text"]["normalised_seconds_per_token"] == pytest.approx(0.5 / 3 / 0.2)
    assert metrics.table("parts", list(rows.values())).num_rows == len(rows) == 12


@pytest.mark.parametrize(("batch", "groups", "interval"), [(1, 24, True), (4, 6, True), (8, 3, False)])
def test_what_was_decoded_together_is_one_measurement(batch: int, groups: int, interval: bool) -> None:
    """Guards against an interval, and a verdict, from one batch counted once a prompt."""
    records = []
    for method in ("autoregressive", "dynatree"):
        places = [(2.0 + n // batch, {"document": f"d{n}", "prompt": f"d/{n}/0"}) for n in range(24)]
        parts = [record(method, [STEP], [1.0, end], **where) for end, where in places]
        for part in parts:
            part.timings[0]["batch"] = batch
        joined = {name: [getattr(part, name)[0] for part in parts] for name in ("outputs", "timings", "audit")}
        records.append(replace(parts[0], **joined))
    rows = metrics.runs(records)
    assert len({row["group"] for row in rows}) == groups
    found = next(row for row in metrics.summary(rows) if (row["method"], row["metric"]) == ("dynatree", "throughput"))
    assert (found["prompts"], found["measurements"]) == (24, groups) and (found["low"] is not None) == interval


def test_requests_decoded_together_have_no_parts() -> None:
    """Guards against the commits of one row of a batch taken for the time of its tokens."""
    together = record("autoregressive", [STEP] * 7, [1.0 + i for i in range(8)])
    together.timings[0]["batch"] = 2
    assert rounds.parts([together]) == []


def test_nodes_of_a_tree() -> None:
    """Guards rank (by probability, not by order), depth, and hits that are unknown below a rejected parent."""
    rejected = {**SPECULATED, "path": [0, 2], "emitted": [8, 4]}
    rows = rounds.nodes([record("dynatree", [STEP, rejected], [1.0, 2.0, 3.0])], lambda ids: f"<{ids[0]}>")
    assert [r["round"] for r in rows] == [1, 1, 1, 1]
    assert [r["depth"] for r in rows] == [0, 1, 1, 2]
    assert [r["rank"] for r in rows] == [0, 1, 0, 0]
    assert [r["accepted"] for r in rows] == [True, False, True, False]
    assert [r["hit"] for r in rows] == [True, False, True, None]
    assert [r["text"] for r in rows] == ["<1>", "<7>", "<8>", "<9>"]


def test_records_are_read_from_the_run_folder(tmp_path: Path) -> None:
    """Guards the path's meaning: folder `runs` is the experiment `headline`."""
    made = record("dynatree", [SPECULATED], [1.0, 2.0])
    folder = tmp_path / "runs" / "dynatree" / "default" / "P8" / "d"
    files.write_jsonl(folder / files.OUTPUTS, made.outputs)
    files.write_json(folder / files.TIMINGS, {"machine": made.machine, "timings": made.timings})
    files.write_jsonl(folder / files.AUDIT, made.audit)
    assert Records.read(tmp_path, folder) == made


def test_phases_carry_what_their_round_emitted(tmp_path: Path) -> None:
    """Guards the timeline: the prefill is round -1 and emits the first commit."""
    made = record("dynatree", [SPECULATED], [1.0, 2.0]).outputs[0]
    folder = tmp_path / "timeline" / "dynatree" / "default" / "d"
    spans = [[-1, "prefill", 0.0, 0.5], [0, "draft", 0.5, 0.75], [0, "verify", 0.75, 1.0]]
    made["forwards"] = [[0.125, 0.5], [0.5, 0.625], [0.625, 0.6875], [0.8125, 1.0]]
    files.write_json(folder / files.PHASES, {**made, "spans": spans, "references": [0.1]})
    slow = tmp_path / "timeline" / "linear" / "K3" / "d"
    files.write_json(slow / files.PHASES, {**made, "spans": spans, "references": [0.05]})
    rows = rounds.phases(tmp_path, [folder, slow], lambda ids: str(ids[0]))
    assert [(r["round"], r["emitted"], r["accepted"]) for r in rows] == [(-1, 1, 0), (0, 2, 1), (0, 2, 1)] * 2
    # Of two the larger is usual: the other pass ran while the machine was twice as fast.
    assert (rows[4]["start_ms"], rows[4]["end_ms"]) == (1000.0, 1500.0)
    assert [row["forward_ms"] for row in rows[:3]] == [375.0, 187.5, 187.5]
    assert rows[0]["text"] == "1"
    assert rows[1]["text"] == f"7{rounds.TOKEN_SEPARATOR}4"
    assert (rows[1]["start_ms"], rows[1]["end_ms"]) == (500.0, 750.0)
    assert metrics.table("phases", rows).schema == TABLES["phases"]
    # And the trees of the same rounds, under the same key.
    nodes = rounds.pass_nodes(tmp_path, [folder], lambda ids: str(ids[0]))
    assert {row["round"] for row in nodes} == {0} and {row["experiment"] for row in nodes} == {"timeline"}
    assert set(nodes[0]) == set(TABLES["nodes"].names)


def test_the_drafters_report_becomes_rows(tmp_path: Path) -> None:
    """Guards against a part taken for a data set, and against calibration errors read as agreement."""
    shares = {"positions": 7, "top1": 0.4, "top8": 0.9, "covered": 0.95, "ece": 0.1, "reliability": []}
    speed = {"method": "tree", "setting": "D2_B2_N3", "tokens_per_round": 2.0, "tokens_per_second": 40.0}
    report = {"agreement": {"a": shares, "a, continuations, first tokens": shares}, "cost": {"ratio": 0.1}}
    files.write_json(tmp_path / "report.json", {**report, "simulated": {"a": [{**speed, "speedup": 1.5}]}})
    rows = metrics.table("drafter", metrics.drafter(tmp_path / "report.json")).to_pylist()
    found = [(row["kind"], row["dataset"], row["part"], row["rank"], row["agreement"]) for row in rows]
    assert found == [
        ("agreement", "a", "text", 1, 0.4),
        ("agreement", "a", "text", 8, 0.9),
        ("agreement", "a", "continuations, first tokens", 1, 0.4),
        ("agreement", "a", "continuations, first tokens", 8, 0.9),
        ("simulated", "a", "continuations", None, None),
    ]
    assert rows[0]["positions"] == 7 and rows[0]["speedup"] is None
    assert (rows[-1]["method"], rows[-1]["setting"], rows[-1]["speedup"]) == ("tree", "D2_B2_N3", 1.5)


def test_rows_fit_the_schema() -> None:
    """Guards against columns that the tables lack or do not declare."""
    records = [record("autoregressive", [STEP], [1.0, 2.0]), record("dynatree", [SPECULATED], [1.0, 2.0])]
    runs = metrics.runs(records)
    for name, rows in {
        "runs": runs,
        "rounds": rounds.rounds(records),
        "nodes": rounds.nodes(records, str),
        "summary": metrics.summary(runs),
    }.items():
        assert set(rows[0]) == set(TABLES[name].names)
        assert metrics.table(name, rows).num_rows == len(rows)


def test_costs_tell_batches_apart(tmp_path: Path) -> None:
    """Guards against the costs of eight requests being drawn as those of one."""
    curve = {"contexts": [64], "tokens": [1, 2], "seconds": [[0.01, 0.02]]}
    wide = {**curve, "seconds": [[0.05, 0.06]]}
    files.write_json(
        tmp_path / "costs.json",
        {"verify": curve, "draft": None, "machine": {"dtype": "int4"}},
    )
    together = {"batches": [{"rows": 8, "verify": wide, "draft": curve}], "machine": {"dtype": "int4"}}
    files.write_json(tmp_path / "batches.json", together)
    rows = [row for name in ("costs.json", "batches.json") for row in metrics.costs(tmp_path / name)]
    assert [(r["part"], r["batch"], r["tokens"], r["ms"]) for r in rows] == [
        ("verify", 1, 1, 10.0),
        ("verify", 1, 2, 20.0),
        ("verify", 8, 1, 50.0),
        ("verify", 8, 2, 60.0),
        ("draft", 8, 1, 10.0),
        ("draft", 8, 2, 20.0),
    ]
    assert metrics.table("costs", rows).num_rows == 6 and {row["dtype"] for row in rows} == {"int4"}


def test_costs_of_another_engine_stand_beside_those_of_each_format(tmp_path: Path) -> None:
    """Guards against curves behind other contexts than could be had, and of other machines."""
    theirs = {"contexts": [256], "tokens": [1, 64], "seconds": [[0.01, 0.2]]}
    paths = [tmp_path / dtype / "costs.json" for dtype in ("float32", "int4")]
    for place, path in enumerate(paths):
        seconds = [[0.1, 0.2], [0.03, 0.04 + place], [0.5, 0.6]]
        curve = {"contexts": [64, 200, 1024], "tokens": [1, 2], "seconds": seconds}
        files.write_json(path, {"machine": MACHINE | {"dtype": path.parent.name}, "verify": curve})
    rows = metrics.llama_cpp_costs(theirs, MACHINE | {"dtype": "int4"}, paths)
    assert [tuple(row.values()) for row in rows] == [
        ("llama_cpp", 256, 1, 10.0),
        ("llama_cpp", 256, 64, 200.0),
        ("float32", 200, 1, 30.0),
        ("float32", 200, 2, 40.0),
        ("int4", 200, 1, 30.0),
        ("int4", 200, 2, 1040.0),
    ]
    assert metrics.table("llama_cpp_costs", rows).num_rows == 6
    with pytest.raises(UserError, match="processor is 'Q' for llama"):
        metrics.llama_cpp_costs(theirs, MACHINE | {"dtype": "int4", "processor": "Q"}, paths)


def test_the_fastest_of_some_methods_is_told_by_kind_of_text() -> None:
    """Guards against one that is the fastest on one data set alone, on a quarter, or over another baseline."""
    key = {"part": "whole", "baseline": "a", "dataset": "all"}
    speeds = {
        ("greedy", "a"): 1.0,
        ("greedy", "b"): 0.9,
        ("drawn", "a"): 1.0,
        ("drawn", "b"): 1.1,
        ("greedy", "c"): 3.0,
    }
    rows = [key | {"text": text, "method": method, "value": value} for (text, method), value in speeds.items()]
    for other in ({"part": "quarter 1"}, {"dataset": "books"}, {"baseline": "c"}):
        rows.append(key | {"text": "greedy", "method": "b", "value": 5.0} | other)
    assert comparison.fastest(rows, ["a", "b"]) == {"greedy": "a", "drawn": "b"}
