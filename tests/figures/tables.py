"""Synthetic tables that conform to the schema: seeded, realistic, small. Knows no figure."""

import math
import random
from functools import cache
from itertools import product
from typing import Any

import pyarrow as pa

from dynatree.tables.schema import TABLES
from tests.figures import experiments, study

METHODS = ("autoregressive", "transformers", "assisted", "prompt_lookup", "linear", "fixed_tree", "dynatree")
SETTINGS = {"linear": "K6", "fixed_tree": "D3_B2_N14", "dynatree": "D8_B3_tau0.03_N64"}
YIELD = {"assisted": 1.9, "prompt_lookup": 1.4, "linear": 2.1, "fixed_tree": 2.3, "dynatree": 2.8}
NODES = {"assisted": 4.0, "prompt_lookup": 5.0, "linear": 6.0, "fixed_tree": 14.0, "dynatree": 11.0}
SPEED = {
    "transformers": 0.97,
    "assisted": 1.08,
    "prompt_lookup": 0.93,
    "linear": 1.16,
    "fixed_tree": 0.9,
    "dynatree": 1.34,
}
WORDS = (
    " the",
    " of",
    "\n\n",
    ' "',
    "King",
    " and",
    ",",
    " dis",
    "respectful",
    ".",
    " a",
    " <b>",
    "'s",
    " in",
    "\t",
    " é",
)
PHASED = {"autoregressive": (0.0, 46.0), "linear": (27.0, 61.0), "dynatree": (38.0, 70.0)}

Row = dict[str, Any]


@cache
def make(
    seed: int = 0,
    winner: str = "dynatree",
    datasets: tuple[str, ...] = ("gutenberg", "wikipedia"),
    prompts: int = 4,
    intervals: bool = True,
    nodes: int = 20,
    swept: int = 1,
    few: bool = False,
    word: str = " the",
) -> dict[str, pa.Table]:
    """All tables of the schema; `winner` is the best method in each, `nodes` the size of its largest tree,
    `swept` the number of data sets with experiments, `few` whether these have few values, `word` a token's text.

    Made once for all that ask alike, so nobody changes what is given: `tables | {name: another}` is a copy.
    """
    chance = random.Random(seed)
    rows: dict[str, list[Row]] = {name: [] for name in TABLES}
    for dataset in datasets:
        _headline(rows, chance, winner, dataset, prompts, intervals)
        for phased in PHASED:
            _phases(rows, chance, phased, dataset, 0.4 if phased == winner else 1.0, word)
        for method in ("linear", "dynatree"):
            for number in range(12):
                _nodes(rows["nodes"], chance, method, dataset, number, nodes, winner)
    for context in (64, 512):
        for part, first in (("verify", 38.0), ("draft", 4.0)):
            for tokens in (1, 2, 4, 8, 16, 32, 64, 128):
                ms = first * (1 + 0.03 * tokens) * (1 + context / 4000)
                for dtype, factor in (("float32", 1.0), ("int4", 0.4)):
                    row = {"part": part, "dtype": dtype, "batch": 1, "context": context, "tokens": tokens}
                    rows["costs"].append({**row, "ms": factor * ms})
    _kinds(rows["summary"], chance, winner, prompts, intervals)
    rows["drafter"] = _drafter(chance, winner, datasets)
    rows["benchmark"] = _benchmark(chance, winner, prompts, intervals)
    rows["llama_cpp"] = _llama_cpp(rows["benchmark"], winner)
    rows["llama_cpp_costs"] = [
        {"engine": engine, "context": 256, "tokens": tokens, "ms": first * (1 + slope * tokens)}
        for engine, first, slope in (("llama_cpp", 12.0, 0.2), ("int4", 14.0, 0.1), ("float32", 38.0, 0.03))
        for tokens in ((1, 2, 4, 8, 16, 32, 64) if engine == "llama_cpp" else (1, 2, 3, 4, 8, 16, 32, 64, 128))
    ]
    for row in [row for row in rows["summary"] if (row["experiment"], row["metric"]) == ("headline", "throughput")]:
        rows["summary"] += study.latency(chance, row)
    for dataset in datasets[:swept]:
        rows["summary"] += study.batch_size(chance, dataset, winner, prompts, intervals, few)
        rows["summary"] += study.precision(chance, dataset, winner, prompts, intervals, few)
    plain = [row for row in rows["runs"] if row["method"] == "autoregressive"]
    elsewhere = [row | {"experiment": kind, "dataset": "wikipedia"} for kind in KINDS for row in plain]
    rows["parts"] = study.parts(random.Random(seed), [*rows["runs"], *elsewhere], winner)
    rows["runs"] += study.chains(rows["runs"], few)
    rows["perplexity"] = study.perplexity(rows["runs"], chance, winner)
    sweeps = [row for row in rows["summary"] if row["experiment"] in ("batch_size", "precision")]
    rows["runs"] += study.single_runs(sweeps, random.Random(seed))
    rows["memory"] = [row for dataset in datasets[:swept] for row in study.memory(chance, dataset, winner)]
    experiments.add(rows, chance, winner, datasets[:swept], prompts, intervals, few)
    return {name: pa.Table.from_pylist(rows[name], schema=TABLES[name]) for name in TABLES}


def summary(experiment: str, method: str, speedups: dict[str, float]) -> pa.Table:
    """A summary with nothing but the given speedup per settings name."""
    rows = [
        _summary(random.Random(0), experiment, method, settings, "wikipedia", "speedup", value, 4, True)
        for settings, value in speedups.items()
    ]
    return pa.Table.from_pylist(rows, schema=TABLES["summary"])


def empty() -> dict[str, pa.Table]:
    """All tables, without rows."""
    return {name: schema.empty_table() for name, schema in TABLES.items()}


def _key(method: str, dataset: str, prompt: int) -> Row:
    return {
        "experiment": "headline",
        "method": method,
        "settings": SETTINGS.get(method, "default"),
        "dataset": dataset,
        "prompt_id": f"{dataset}:{prompt}:128",
        "repeat": 0,
    }


def _headline(
    rows: dict[str, list[Row]], chance: random.Random, winner: str, dataset: str, prompts: int, intervals: bool
) -> None:
    for method in METHODS:
        speed = SPEED.get(method, 1.0) + (0.9 if method == winner else 0.0)
        speed *= 0.5 if winner == "autoregressive" else 1.0
        emits = YIELD.get(method, 1.0) + (2.5 if method == winner and method in YIELD else 0.0)
        for prompt in range(prompts):
            tokens = emits * chance.uniform(0.85, 1.15) if method in YIELD else 1.0
            rounds = round(199 / tokens)
            drafted = round(rounds * NODES[method]) if method in NODES else 0
            accepted = round(rounds * (tokens - 1))
            rows["runs"].append(
                _key(method, dataset, prompt)
                | {"prompt_tokens": 128, "batch": 1, "tpot_ms": 45.0 / speed, "document_id": f"{dataset}:{prompt}"}
                | {"dtype": "float32"}
                | {"pace": 1.0, "autoregressive_step_ms": chance.uniform(44, 46), "autoregressive_step_spread": 0.02}
                | {"speedup": speed * chance.uniform(0.95, 1.05) if method != "autoregressive" else 1.0}
                | {"output_tokens": 200, "iterations": rounds, "tokens_per_iteration": tokens}
                | {"target_forwards": rounds, "drafted": drafted, "drafted_depth": min(drafted, rounds * 5)}
                | {"accepted": accepted, "mean_path_length": tokens - 1}
                | {"acceptance_rate": accepted / min(drafted, rounds * 5) if drafted else None}
            )
            for number in range(6 if drafted else 0):
                rows["rounds"].append(
                    _key(method, dataset, prompt)
                    | {"round": number, "drafted": chance.randint(0, round(NODES[method]) + 9 * (method == winner))}
                )
        for metric, value in (("throughput", 20.7 * speed), ("speedup", speed)):
            rows["summary"].append(
                _summary(
                    chance,
                    "headline",
                    method,
                    SETTINGS.get(method, "default"),
                    dataset,
                    metric,
                    value,
                    prompts,
                    intervals,
                )
            )


def _summary(
    chance: random.Random, experiment: str, method: str, settings: str, dataset: str, metric: str, value: float,
    prompts: int, intervals: bool,
) -> Row:  # fmt: skip
    exact = method == "autoregressive" and metric == "speedup"
    value *= 1.0 if exact else chance.uniform(0.98, 1.02)
    spread = 0.0 if exact else chance.uniform(0.03, 0.12)
    low, high = value * (1 - spread), value * (1 + spread)
    return {
        "experiment": experiment,
        "method": method,
        "settings": settings,
        "dataset": dataset,
        "prompt_tokens": 128,
        "batch": 1,
        "dtype": "float32",
        "kind": KINDS.get(experiment, "greedy"),
        "metric": metric,
        "prompts": prompts,
        "documents": prompts,
        "measurements": prompts,
        "output_tokens": 200,
        "value": value,
        "low": low if intervals else None,
        "high": high if intervals else None,
        "significant": intervals and prompts >= 10 and not low <= 1 <= high if metric == "speedup" else None,
    }


KINDS = {
    "sampled": "sampled, temperature 1",
    "nucleus": "sampled, temperature 0.7, top-p 0.95",
    "penalised": "greedy, repetition penalty 1.2",
}


def _kinds(rows: list[Row], chance: random.Random, winner: str, prompts: int, intervals: bool) -> None:
    for method in ("autoregressive", "prompt_lookup", "linear", "dynatree"):
        value = 1.0 if method == "autoregressive" else 0.9 + 0.4 * (method == winner)
        settings = SETTINGS.get(method, "default")
        for experiment, metric, what in [
            *((kind, "speedup", value) for kind in KINDS),
            *((kind, "repetition", 0.01) for kind in KINDS),
            ("headline", "repetition", 0.5),
        ]:
            rows.append(_summary(chance, experiment, method, settings, "wikipedia", metric, what, prompts, intervals))


def _benchmark(chance: random.Random, winner: str, prompts: int, intervals: bool) -> list[Row]:
    rows = []
    for text, repeated in (("greedy", 0.5), ("penalised", 0.01)):
        speeds = {method: chance.uniform(0.7, 1.3) + 2.0 * (method == winner) for method in METHODS}
        for method, dataset, baseline in product(METHODS, ("wikipedia", "all"), METHODS):
            for part in ("whole", *(f"quarter {n}" for n in (1, 2, 3, 4) if baseline == "transformers")):
                value = speeds[method] / speeds[baseline] * (1.0 if part == "whole" else chance.uniform(0.8, 1.2))
                rows.append(
                    {"text": text, "dataset": dataset, "method": method, "baseline": baseline, "value": value}
                    | {"low": 0.9 * value if intervals else None, "high": 1.1 * value if intervals else None}
                    | {"prompts": prompts, "documents": prompts, "worst": 0.7 * value, "significant": prompts >= 10}
                    | {"settings": SETTINGS.get(method, "default"), "edges": ["K"] if method == "linear" else None}
                    | {"worst_again": None, "throughput": 20 * value, "repetition": repeated, "identical": 1.0}
                    | {"part": part, "kind": KINDS.get(text, text), "dtype": "int4"}
                )
    return rows


def _llama_cpp(benchmark: list[Row], winner: str) -> list[Row]:
    """What the benchmark has, with three more that read a fifth of the bytes; the fastest of them by the winner."""
    found = []
    for text in dict.fromkeys(row["text"] for row in benchmark):
        ours = [row for row in benchmark if (row["text"], row["part"], row["baseline"]) == (text, "whole", "linear")]
        alike = [row for row in ours if row["method"] == METHODS[0]]
        theirs = [row | {"method": f"llama_cpp{more}"} for row in alike for more in ("", "_lookup", "_draft")]
        fastest = "llama_cpp_draft" if winner == "linear" else "llama_cpp"
        for baseline in ("llama_cpp", "llama_cpp_lookup", "llama_cpp_draft"):
            here = {"baseline": baseline, "of_fastest": baseline == fastest}
            found += [row | here | {"dtype": "int4", "weight_bytes": 513 * 2**20} for row in ours]
            found += [row | here | {"dtype": None, "weight_bytes": 98 * 2**20} for row in theirs]
    return found


def _drafter(chance: random.Random, winner: str, datasets: tuple[str, ...]) -> list[Row]:
    rows: list[Row] = []
    for dataset in datasets:
        for part in ("text", "continuations, first tokens", "continuations, later tokens"):
            share = chance.uniform(0.3, 0.5)
            for rank, gained in ((1, 0.0), (2, 0.12), (3, 0.17), (8, 0.28)):
                row = {"kind": "agreement", "dataset": dataset, "part": part, "rank": rank, "positions": 2048}
                rows.append({**row, "agreement": share + gained})
        simulated = {("autoregressive", ""): 1.0}
        simulated |= {("chain", f"K{k}"): 1.5 - abs(k - 3) * chance.uniform(0.06, 0.09) for k in range(1, 9)}
        simulated |= {("tree", "D3_B2_N6"): 1.0 if winner == "linear" else 1.7}
        simulated |= {("prompt_lookup", "K5_n3"): 1.3, ("lookup", "K8"): 1.4, ("oracle", "K63"): 19.0}
        for (method, setting), speedup in simulated.items():
            row = {"kind": "simulated", "dataset": dataset, "part": "continuations", "method": method}
            row |= {"setting": setting, "tokens_per_round": 1.2 * speedup, "tokens_per_second": 26.0 * speedup}
            rows.append({**row, "speedup": speedup})
    return rows


def _phases(
    rows: dict[str, list[Row]], chance: random.Random, method: str, dataset: str, faster: float, word: str
) -> None:
    """A pass whose text of 20 tokens is followed by a loop of 10; what is drafted beyond the accepted is rejected."""
    draft, verify = PHASED[method]
    key = _key(method, dataset, 0) | {"experiment": "timeline"}
    fresh = [f"{word if place % 5 == 0 else WORDS[place % len(WORDS)]}{place}" for place in range(20)]
    output = fresh + [WORDS[place % 10] for place in range(60)]
    now = 310.0 + draft
    rows["phases"].append(
        key
        | {"round": -1, "phase": "prefill", "start_ms": 0.0, "end_ms": now, "forward_ms": 0.98 * now}
        | {"emitted": 1, "text": output[0], "accepted": 0}
    )
    made, number = 1, 0
    while made < len(output) - 7:
        accepted = chance.choice((0, 1, 1, 2, 3, 5)) if draft else 0
        text = "\u241f".join(output[made : made + accepted + 1])
        lengths = {"draft": draft, "select": 1.1, "verify": verify, "cache": 0.8} if draft else {"verify": verify}
        for phase, length in lengths.items():
            end = now + faster * length * chance.uniform(0.9, 1.2)
            within = {"draft": 0.7, "verify": 0.97}.get(phase, 0.0) * (end - now)
            rows["phases"].append(
                key
                | {"round": number, "phase": phase, "start_ms": now, "end_ms": end, "forward_ms": within}
                | {"emitted": accepted + 1, "text": text, "accepted": accepted}
            )
            now = end
        path = [output[made - 1], *output[made : made + accepted]]
        for place, (drafted, kept) in enumerate([*((t, True) for t in path), ("lost", False)] if draft else []):
            node = {"node": place, "parent": place - 1, "depth": place, "rank": 0, "token": place, "text": drafted}
            node |= {"path_log_probability": -0.5 * place, "accepted": kept, "hit": kept}
            rows["nodes"].append(key | {"round": number} | node)
        made, number = made + accepted + 1, number + 1


def _nodes(
    rows: list[Row], chance: random.Random, method: str, dataset: str, number: int, size: int, winner: str
) -> None:
    tree: list[Row] = [{"parent": -1, "depth": 0, "rank": 0, "path": 0.0, "accepted": True}]
    for _ in range(max(2, size - number) if method == "dynatree" else min(size, 6)):
        parent = chance.choice(range(max(0, len(tree) - 9), len(tree))) if method == "dynatree" else len(tree) - 1
        rank = sum(node["parent"] == parent for node in tree)
        tree.append(
            {"parent": parent, "depth": tree[parent]["depth"] + 1, "rank": rank, "accepted": False}
            | {"path": tree[parent]["path"] + math.log(chance.uniform(0.2, 0.9) / (rank + 1))}
        )
    wanted, here = (4 if winner == method else 1), 0
    for _ in range(wanted):
        children = [place for place, node in enumerate(tree) if node["parent"] == here]
        if children:
            here = max(children, key=lambda place: sum(node["parent"] == place for node in tree))
            tree[here]["accepted"] = True
    for place, node in enumerate(tree):
        met = node["parent"] < 0 or tree[node["parent"]]["accepted"]
        rows.append(
            _key(method, dataset, 0)
            | {"round": number, "node": place, "token": place, "text": chance.choice(WORDS)}
            | {"parent": node["parent"], "depth": node["depth"], "rank": node["rank"], "accepted": node["accepted"]}
            | {"path_log_probability": node["path"], "hit": node["accepted"] if met else None}
        )
