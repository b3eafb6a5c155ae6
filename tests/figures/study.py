"""Synthetic rows of memory, latency, batches, perplexity and chains. Knows no figure."""

import random
from typing import Any

Row = dict[str, Any]

MEMORY = {
    "autoregressive": ("default", 0.0, 0.0, 8.2),
    "transformers": ("default", 0.0, 0.0, 8.2),
    "assisted": ("n5", 261.0, 0.55, 8.2),
    "prompt_lookup": ("n10", 0.0, 0.0, 8.4),
    "linear": ("K6", 261.0, 0.55, 8.3),
    "fixed_tree": ("D3_B2_N14", 261.0, 0.6, 8.6),
    "dynatree": ("D8_B3_tau0.03_N64", 261.0, 0.7, 9.5),
}
FORMATS = ("float32", "float16", "int8", "int4")


def memory(chance: random.Random, dataset: str, winner: str) -> list[Row]:
    """One measurement a method; the winner's peak is the lowest."""
    rows = []
    for method, (settings, drafter, draft_cache, cache) in MEMORY.items():
        loaded = 1500.0 + drafter - 500.0 * (method == winner)
        rows.append(
            {"method": method, "settings": settings, "dataset": dataset, "prompt_id": f"{dataset}/0/0"}
            | {"prompt_tokens": 128, "output_tokens": 200, "weights_mib": 621.0, "drafter_weights_mib": drafter}
            | {"load_peak_mib": loaded + 50, "loaded_mib": loaded, "peak_mib": loaded + chance.uniform(5, 90)}
            | {"cache_used_mib": cache, "cache_allocated_mib": None if method == "transformers" else 11.25}
            | {"drafter_cache_used_mib": draft_cache, "drafter_cache_allocated_mib": 0.75 * (draft_cache > 0)}
        )
    return rows


def latency(chance: random.Random, throughput: Row) -> list[Row]:
    """Times to the first token and per token that belong to a row of throughput."""
    rows = []
    for metric, value in (("ttft_ms", 310 * chance.uniform(0.9, 1.3)), ("tpot_ms", 1000 / throughput["value"])):
        factor = value / throughput["value"]
        ends = {end: throughput[end] and throughput[end] * factor for end in ("low", "high")}
        rows.append(throughput | {"metric": metric, "value": value, **ends})
    return rows


def batch_size(chance: random.Random, dataset: str, winner: str, prompts: int, ends: bool, few: bool) -> list[Row]:
    """Throughput, speedup and memory at several batch sizes; every gain shrinks, the winner's last."""
    rows = []
    for method, settings, gain in (
        ("autoregressive", "default", 1.0), ("linear", "K6", 1.4), ("dynatree", "D63_B3_tau0.01_N63", 1.6),
    ):  # fmt: skip
        for batch in (1,) if few else (1, 2, 4, 8):
            speed = gain * (1.3 if method == winner else 1.0) * batch**-0.35 if method != "autoregressive" else 1.0
            for metric, value in (
                ("speedup", speed), ("throughput", speed * 21 * batch**0.8), ("peak_mib", 700.0 + 40 * batch * gain),
            ):  # fmt: skip
                exact = metric == "peak_mib" or (metric, method) == ("speedup", "autoregressive")
                spread = 0.0 if exact else chance.uniform(0.02, 0.08)
                low, high = value * (1 - spread), value * (1 + spread)
                rows.append(
                    {"experiment": "batch_size", "method": method, "settings": settings, "dataset": dataset}
                    | {"prompt_tokens": 128, "batch": batch, "kind": "greedy", "metric": metric}
                    | {"prompts": prompts, "documents": prompts}
                    | {"measurements": -(-prompts // batch), "output_tokens": 48}
                    | {"value": value, "low": low if ends else None, "high": high if ends else None}
                    | {"significant": ends and prompts >= 10 and not low <= 1 <= high if metric == "speedup" else None}
                )
    return rows


def precision(chance: random.Random, dataset: str, winner: str, prompts: int, ends: bool, few: bool) -> list[Row]:
    """Throughput and speedup in several formats; fewer bits are faster, and leave less to gain."""
    rows = []
    for method, settings in (("autoregressive", "default"), ("dynatree", "D63_B3_tau0.01_N63")):
        for place, dtype in enumerate(FORMATS[:1] if few else FORMATS):
            gain = (2.0 if method == winner else 1.4) - 0.2 * place if method != "autoregressive" else 1.0
            for metric, value in (("speedup", gain), ("throughput", gain * (30 + 20 * place))):
                spread = 0.0 if (metric, method) == ("speedup", "autoregressive") else chance.uniform(0.02, 0.08)
                low, high = value * (1 - spread), value * (1 + spread)
                rows.append(
                    {"experiment": "precision", "method": method, "settings": settings, "dataset": dataset}
                    | {
                        "prompt_tokens": 128,
                        "batch": 1,
                        "dtype": dtype,
                        "kind": "greedy",
                        "metric": metric,
                        "prompts": prompts,
                    }
                    | {"documents": prompts, "measurements": prompts, "output_tokens": 48, "value": value}
                    | {"low": low if ends else None, "high": high if ends else None}
                    | {"significant": ends and prompts >= 10 and not low <= 1 <= high if metric == "speedup" else None}
                )
    return rows


def single_runs(summary: list[Row], chance: random.Random) -> list[Row]:
    """Runs that rows of `summary` could be the means of: a run a prompt, about each metric's mean."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in summary:
        for prompt in range(row["prompts"]):
            key = {
                name: row[name] for name in ("experiment", "method", "settings", "dataset", "prompt_tokens", "batch")
            }
            key |= {"dtype": row.get("dtype"), "prompt_id": f"{prompt}", "document_id": f"{prompt}", "repeat": 0}
            run = found.setdefault(tuple(key.values()), key | {"output_tokens": row["output_tokens"]})
            run[row["metric"]] = row["value"] * chance.uniform(0.9, 1.1)
            run["identical_float32"] = prompt % 2 == 0
    return list(found.values())


def perplexity(runs: list[Row], chance: random.Random, winner: str) -> list[Row]:
    """Gives runs of the headline their outputs' perplexities, one in twenty another output; those of the texts."""
    headline = [row for row in runs if row["experiment"] == "headline"]
    baseline = {(row["dataset"], row["prompt_id"]): chance.uniform(1.3, 6.0) for row in headline}
    for row in headline:
        flips = int(row["method"] not in ("autoregressive", winner) and chance.random() < 0.05)
        value = baseline[row["dataset"], row["prompt_id"]]
        row |= {
            "flips": flips,
            "identical": not flips,
            "perplexity": value * (chance.uniform(0.8, 1.3) if flips else 1),
        }
    return [
        {"dataset": name, "dtype": dtype, "split": "evaluation", "tokens": 8000, "window": 512, "stride": 256}
        | {"perplexity": chance.uniform(18, 40)}
        for name in sorted({row["dataset"] for row in headline})
        for dtype in FORMATS
    ]


def chains(runs: list[Row], few: bool) -> list[Row]:
    """Runs of longer chains and a larger fixed tree, on the headline's prompts; `few`: on one, cut short."""
    dataset = runs[0]["dataset"]
    baseline = [row for row in runs if (row["experiment"], row["method"]) == ("headline", "linear")]
    rows = []
    for row in [row for row in baseline if row["dataset"] == dataset][: 1 if few else None]:
        for method, settings, nodes, gain in (
            ("linear", "K8", 8, 1.1), ("linear", "K10", 10, 1.12), ("fixed_tree", "D5_B2_N62", 62, 1.3),
        ):  # fmt: skip
            tokens = row["tokens_per_iteration"] * gain
            rounds = round(row["output_tokens"] / (4 if few else 1) / tokens)
            accepted = round(rounds * (tokens - 1))
            depth = min(nodes, 10)
            rows.append(
                row
                | {"experiment": "chains", "method": method, "settings": settings, "iterations": rounds}
                | {"output_tokens": row["output_tokens"] // (4 if few else 1), "tokens_per_iteration": tokens}
                | {"target_forwards": rounds, "drafted": rounds * nodes, "drafted_depth": rounds * depth}
                | {"accepted": accepted, "mean_path_length": tokens - 1, "acceptance_rate": (tokens - 1) / depth}
            )
    return rows


def parts(chance: random.Random, runs: list[Row], winner: str) -> list[Row]:
    """Speed by part of every run: later quarters and loops are faster, the winner's most."""
    rows = []
    for run in runs:
        key = {name: run[name] for name in ("experiment", "method", "settings", "dataset", "prompt_id", "repeat")}
        key |= {"document_id": run["prompt_id"], "prompt_tokens": run["prompt_tokens"]}
        gain = 0.0 if run["method"] == "autoregressive" else 0.2 + 0.5 * (run["method"] == winner)
        for place, part in enumerate(("quarter 1", "quarter 2", "quarter 3", "quarter 4", "new text", "loops")):
            speedup = (1 + gain * (place - 1 if place < 4 else 5 * (place - 4) - 0.5)) * chance.uniform(0.98, 1.02)
            speedup = 1.0 if run["method"] == "autoregressive" else speedup
            rows.append(
                key | {"part": part, "tokens": 50, "normalised_seconds_per_token": 1 / speedup, "speedup": speedup}
            )
    return rows
