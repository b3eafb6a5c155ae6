"""The paired benchmark: rotating order, exact outputs, ratios prompt by prompt."""

from types import SimpleNamespace
from typing import Any

import pytest

from dynatree import decoding
from dynatree.data.prompts import Prompt
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import benchmark
from dynatree.measuring.clock import StepSampler
from dynatree.tables import bootstrap, comparison
from dynatree.tables.schema import TABLES
from tests import models
from tests.conftest import Build, Drafts


def prompt(name: str) -> Prompt:
    return Prompt(f"d/{name}/0", name, "d", "", "evaluation", "document", 0, [3, 1, 4, 1, 5])


def decoders(target: Build, drafter: Drafts) -> dict[str, object]:
    chain = {"policy": "chain", "drafting": "hybrid", "draft_tokens": 3}
    return {
        "autoregressive": decoding.build(target(), None, "autoregressive", {}),
        "transformers": decoding.build(target(), None, "transformers", {}),
        "chain": decoding.build(target(), drafter("related"), "speculative", chain),
    }


def test_every_method_takes_its_turn_and_the_plain_loop_comes_again(target: Build, drafter: Drafts) -> None:
    """Guards against a method that always runs first, on a cold cache, and against ratios without their noise."""
    orders = []
    for turn in range(3):
        rows = benchmark.paired(
            target(), decoders(target, drafter), prompt("a"), models.wanted(12, repetition_penalty=1.3), turn, 1e-6
        )
        orders.append([row["method"] for row in rows])
        assert all(row["identical"] and row["flips"] == 0 and len(row["output_ids"]) == 12 for row in rows)
        assert all(sum(row["emitted"]) == 12 and len(row["commits"]) == len(row["emitted"]) for row in rows)
    assert orders == [
        ["autoregressive", "transformers", benchmark.AGAIN, "chain"],
        ["transformers", benchmark.AGAIN, "chain", "autoregressive"],
        [benchmark.AGAIN, "chain", "autoregressive", "transformers"],
    ]


def test_an_inexact_method_stops_the_benchmark(target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a speed that is bought with other tokens."""
    wrong = decoders(target, drafter)
    other = models.language_model(seed=5)
    wrong["chain"] = decoding.build(other, None, "autoregressive", {})
    with pytest.raises(UserError, match="not exact"):
        benchmark.paired(target(), wrong, prompt("a"), models.wanted(12), 0, 1e-6)


def test_ratios_are_of_the_same_prompt(target: Build, drafter: Drafts) -> None:
    """Guards against dividing means, which a single long prompt would decide."""
    rows = [
        {"method": method, "prompt_id": name, "document_id": name, "dataset": "d", "seconds": seconds * step}
        | {"output_ids": [1, 2], "repetition": 0.5, "identical": True, "references": [0.5 * step, 1.5 * step]}
        # Half of the time is the prompt's; the second token's comes in the last quarters.
        | {"emitted": [1, 1], "commits": [seconds * step / 2, seconds * step]}
        for name, plain in (("a", 1.0), ("b", 100.0))
        for method, seconds, step in (
            ("autoregressive", plain, 1.0),
            ("transformers", 2 * plain, 1.0),
            # In a minute in which the machine was half as fast.
            ("chain", plain / 4, 2.0),
        )
    ]
    again = [dict(row, seconds=row["seconds"] * 2) if row["method"] == "chain" else row for row in rows]
    table = comparison.summary("greedy", rows, {"chain": again})
    further = {"kind", "settings", "edges", "drafter", "dtype"}
    assert all(set(row) == set(TABLES["benchmark"].names) - further for row in table)
    here = [row for row in table if row["method"] == "chain" and row["dataset"] == "all"]
    chain = {row["baseline"]: row for row in here if row["part"] == "whole"}
    assert set(chain) == {"autoregressive", "transformers", "chain"} and chain["chain"]["value"] == 1
    windows = {(row["baseline"], row["part"]): row["value"] for row in here if row["part"] != "whole"}
    assert windows == pytest.approx({("autoregressive", "quarter 3"): 4, ("transformers", "quarter 3"): 8})
    assert chain["autoregressive"]["value"] == pytest.approx(4) and chain["transformers"]["worst"] == pytest.approx(8)
    assert not chain["autoregressive"]["significant"]
    assert chain["autoregressive"]["worst_again"] == pytest.approx(2) and chain["transformers"]["worst_again"] is None


def test_of_two_middle_ratios_the_median_is_between() -> None:
    """Guards against a slow prompt that looks faster where it was timed an even number of times."""
    times = [("autoregressive", 4.0), ("chain", 1.0), ("autoregressive", 4.0), ("chain", 2.0)]
    again = [
        {"method": method, "prompt_id": "a", "seconds": seconds, "references": [1.0, 1.0]} for method, seconds in times
    ]
    assert comparison._median_ratio("chain", again) == pytest.approx(3)


def test_documents_of_two_data_sets_may_have_one_name() -> None:
    """Guards against intervals over all data sets that draw documents of one name together."""
    rows = [
        {"method": method, "prompt_id": f"{dataset}/{name}", "document_id": str(name), "dataset": dataset}
        | {"output_ids": [1, 2], "repetition": 0.5, "identical": True, "references": [1.0, 1.0]}
        | {"seconds": seconds, "emitted": [1, 1], "commits": [seconds / 2, seconds]}
        for dataset in ("d", "e")
        for name in range(bootstrap.MINIMUM_GROUPS // 2)
        for method, seconds in (("autoregressive", 2.0), ("chain", 1.0 + name))
    ]
    table = comparison.summary("greedy", rows, {})
    found = [
        row for row in table if (row["method"], row["baseline"], row["part"]) == ("chain", "autoregressive", "whole")
    ]
    documents = {row["dataset"]: (row["documents"], row["low"] is None) for row in found}
    assert documents == {"d": (3, True), "e": (3, True), "all": (6, False)}


def test_the_slowest_prompt_is_told_in_plain_steps_and_timed_again_by_turns(target: Build, drafter: Drafts) -> None:
    """Guards against repeating the prompt of a slow minute, and against one method that always runs first."""
    rows = [
        {"method": method, "prompt_id": name, "seconds": seconds, "references": [step, step]}
        for name, step, seconds_of in (("a", 1.0, (8.0, 4.0)), ("b", 9.0, (72.0, 35.0)), ("c", 1.0, (8.0, 5.0)))
        for method, seconds in zip(("autoregressive", "chain"), seconds_of, strict=True)
    ]
    assert comparison.slowest(rows, "chain") == "c"
    built = decoders(target, drafter)
    timed = benchmark.repeated(target(), built, "chain", prompt("a"), models.wanted(12), 3)
    names = ["autoregressive", "chain"]
    assert [row["method"] for row in timed] == [*names, *reversed(names), *names]
    assert len({tuple(row["output_ids"]) for row in timed}) == 1


class Recorded:
    """A decoder that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def decode(self, ids: list[int], options: GenerationOptions, clock: Any) -> Any:
        self.asked.append((ids, options))
        return SimpleNamespace(seconds=2.0)


def test_tuning_is_on_the_kind_of_text_that_is_timed(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against baselines tuned on plain text and timed on penalised."""
    monkeypatch.setattr(StepSampler, "sample", lambda self: 0.5)
    decoder, options = Recorded(), models.wanted(6, repetition_penalty=1.2)
    assert benchmark.tune(target(), [decoder], [prompt("a"), prompt("b")], options) == [8.0]
    assert decoder.asked == [(prompt(name).ids, options) for name in "ab"]


def test_tuning_is_not_led_by_a_stalled_clock(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a combination that seems to be the fastest since its reference stalled."""
    stalled = [SimpleNamespace(seconds=4.5)], SimpleNamespace(samples=[0.5, 0.5, 8.0, 0.5])
    monkeypatch.setattr(benchmark.runs, "timed", lambda *_: stalled)
    assert benchmark.tune(target(), [Recorded()], [prompt("a")], models.wanted(6)) == [pytest.approx(8.0)]


def test_tuning_tries_every_combination_on_every_prompt(target: Build, drafter: Drafts) -> None:
    """Guards against a baseline that had fewer tries, or other prompts, than its baseline."""
    tried = benchmark.combinations({"policy": "chain", "draft_tokens": 1}, {"draft_tokens": [1, 2], "x": [3]})
    assert tried == [{"policy": "chain", "draft_tokens": k, "x": 3} for k in (1, 2)]
    built = list(decoders(target, drafter).values())
    steps = benchmark.tune(target(), built, [prompt("a"), prompt("b")], models.wanted(6))
    assert len(steps) == 3 and all(value > 0 for value in steps)
