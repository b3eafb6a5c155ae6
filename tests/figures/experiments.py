"""Synthetic rows of the study's experiments: lengths, tree shapes, ablation, prompt lengths. Knows no figure."""

import random
from typing import Any

Row = dict[str, Any]

SPEED = {"assisted": 1.05, "prompt_lookup": 1.5, "linear": 1.55, "dynatree": 1.9, "optimal": 1.5, "fixed_d5_b2": 0.9}
SETTINGS = {"dynatree": "D63_B3_tau0.01_N63", "linear": "K3"}
LENGTH_METHODS = ("autoregressive", "assisted", "prompt_lookup", "linear", "dynatree")
PROMPT_METHODS = ("autoregressive", "prompt_lookup", "linear", "dynatree")
ABLATED = {
    ("dynatree_threshold", "D8_B3_tau0.03_N64"): 1.45,
    ("dynatree_threshold", "D8_B3_tauNone_N64"): 0.8,
    ("dynatree_threshold", "D8_B3_tau0.03_NNone"): 1.42,
    ("fixed_d5_b2", "D5_B2_N62"): 0.9,
    ("dynatree", "D63_B3_tau0.01_N63"): 1.9,
    ("without_cost_model", "D63_B3_tau0.01_N63"): 1.5,
    ("without_lookup", "D63_B3_tau0.01_N63"): 1.3,
    ("without_draft_vocabulary", "D63_B3_tau0.01_N63"): 1.7,
    ("without_calibration", "D63_B3_tau0.01_N63"): 1.88,
    ("optimal", "D8_B8_N63"): 1.5,
    ("autoregressive", "default"): 1.0,
}

NOISES = {
    "autoregressive": ("default", 0.8),
    "shared_noise": ("D3_B2_N14", 1.4),
    "independent_noise": ("D3_B2_N14_draft_noiseindependent", 1.1),
    "no_noise": ("D3_B2_N14_draft_noisenone", 1.05),
    "traversal": ("D3_B2_N14_draft_noiseindependent_verificationtraversal", 1.35),
}


def add(
    rows: dict[str, list[Row]],
    chance: random.Random,
    winner: str,
    datasets: tuple[str, ...],
    prompts: int,
    intervals: bool,
    few: bool,
) -> None:
    """Append rows of every experiment; `few`: the fewest values of each that still make a figure."""
    for dataset in datasets:
        _length_scaling(rows, chance, winner, dataset, prompts, 60 if few else 1000)
        _tree_shape(rows, chance, winner, dataset, prompts, intervals, few)
        _ablation(rows, chance, winner, dataset, prompts, intervals, few)
        _draft_noise(rows["summary"], chance, winner, dataset, prompts, intervals, few)
        for length in (200,) if few else (50, 100, 200, 500, 1000):
            _prompt_length(rows, chance, winner, dataset, prompts, intervals, length)


def _speed(method: str, winner: str) -> float:
    return SPEED.get(method, 1.0) * (0.6 if winner not in ("dynatree", method) else 1.0) + 0.9 * (method == winner)


def _key(experiment: str, method: str, settings: str, dataset: str, prompt: int) -> Row:
    key = {"experiment": experiment, "method": method, "settings": settings, "dataset": dataset, "repeat": 0}
    return key | {"prompt_id": f"{dataset}:{prompt}:128", "document_id": f"{dataset}:{prompt}"}


def _summary(
    experiment: str, method: str, settings: str, dataset: str, prompts: int, length: int, metric: str, value: float,
    ends: tuple[float, float] | None,
) -> Row:  # fmt: skip
    return {
        "experiment": experiment,
        "method": method,
        "settings": settings,
        "dataset": dataset,
        "prompt_tokens": length,
        "batch": 1,
        "dtype": "float32",
        "kind": "greedy",
        "metric": metric,
        "prompts": prompts,
        "documents": prompts,
        "measurements": prompts,
        "output_tokens": 200,
        "value": value,
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
        "significant": bool(ends) and prompts >= 10 and not ends[0] <= 1 <= ends[1] if metric == "speedup" else None,
    }


def _runs(
    rows: list[Row], chance: random.Random, experiment: str, method: str, settings: str, dataset: str, prompts: int,
    value: float,
) -> None:  # fmt: skip
    """A run a prompt about the value; two that differ in their name alone took other trees."""
    for prompt in range(prompts):
        speedup = value * chance.uniform(0.96, 1.04) if method != "autoregressive" else 1.0
        key = _key(experiment, method, settings, dataset, prompt)
        key |= {"prompt_tokens": 128, "batch": 1, "dtype": "float32"}
        rows.append(key | {"output_tokens": 200, "speedup": speedup, "drafted": chance.randrange(10**6)})


def _ends(chance: random.Random, value: float, given: bool, exact: bool = False) -> tuple[float, float] | None:
    spread = 0.0 if exact else chance.uniform(0.03, 0.12)
    return (value * (1 - spread), value * (1 + spread)) if given else None


def _length_scaling(
    rows: dict[str, list[Row]], chance: random.Random, winner: str, dataset: str, prompts: int, tokens: int
) -> None:
    for prompt in range(prompts):
        # One text of the data set ends before the longest length, with every method.
        ends = tokens - tokens // 4 if prompt == 2 else tokens
        for method in LENGTH_METHODS:
            reference = chance.uniform(44.0, 48.0)
            emits = 5 if method == "autoregressive" else 15
            key = _key("length_scaling", method, SETTINGS.get(method, "default"), dataset, prompt)
            now, made, number, pace = 300.0, 1, 0, chance.uniform(0.9, 1.1)
            while made < ends:
                gain = 1.0 if method == "autoregressive" else 1.0 + made / 2500
                now += reference * pace * emits / _speed(method, winner) / gain
                made = min(ends, made + emits)
                rows["rounds"].append(
                    {name: key[name] for name in key if name != "document_id"}
                    | {"round": number, "emitted": emits, "commit_ms": now, "output_tokens": made}
                )
                number += 1
            rows["runs"].append(
                key
                | {"prompt_tokens": 128, "batch": 1, "output_tokens": ends, "pace": 46.0 / reference}
                | {"seconds": now / 1000, "iterations": number}
            )


def _tree_shape(
    rows: dict[str, list[Row]],
    chance: random.Random,
    winner: str,
    dataset: str,
    prompts: int,
    intervals: bool,
    few: bool,
) -> None:
    best = 0.3 if winner == "dynatree" else -0.3
    grid = {(d, b, "0.03") for d in range(3, 9) for b in (2, 3, 4)}
    grid |= {(8, 3, tau) for tau in ("0.01", "0.02", "0.05", "0.1")}
    values = {
        ("dynatree_threshold", f"D{d}_B{b}_tau{tau}_N64"): 1.1 + best * (d - 5) / 5 - 0.05 * abs(b - 3) - float(tau)
        for d, b, tau in ([(3, 3, "0.03"), (8, 3, "0.03")] if few else sorted(grid))
    }
    values |= {("dynatree", SETTINGS["dynatree"]): 1.1 + 2 * best, ("autoregressive", "default"): 1.0}
    for (method, settings), value in values.items():
        ends = _ends(chance, value, intervals, exact=method == "autoregressive")
        _runs(rows["runs"], chance, "tree_shape", method, settings, dataset, prompts, value)
        rows["summary"].append(_summary("tree_shape", method, settings, dataset, prompts, 128, "speedup", value, ends))


def _ablation(
    rows: dict[str, list[Row]],
    chance: random.Random,
    winner: str,
    dataset: str,
    prompts: int,
    intervals: bool,
    few: bool,
) -> None:
    for (method, settings), value in ABLATED.items():
        if few and method not in ("dynatree", "without_lookup", "autoregressive"):
            continue
        if winner == "linear" and method == "without_lookup":
            value = 2.3
        _runs(rows["runs"], chance, "ablation", method, settings, dataset, prompts, value)
        ends = _ends(chance, value, intervals, exact=method == "autoregressive")
        rows["summary"].append(_summary("ablation", method, settings, dataset, prompts, 128, "speedup", value, ends))


def _draft_noise(
    rows: list[Row], chance: random.Random, winner: str, dataset: str, prompts: int, intervals: bool, few: bool
) -> None:
    for experiment, temperature in [("draft_noise", 1.0), ("draft_noise_cool", 0.7)][: 1 if few else 2]:
        for method, (settings, accepted) in NOISES.items():
            accepted += 0.4 * (winner == "linear" and method == "no_noise")
            for metric, value in (("speedup", 0.6 + accepted / 2), ("mean_path_length", accepted)):
                ends = _ends(chance, value, intervals, exact=method == "autoregressive")
                row = _summary(experiment, method, settings, dataset, prompts, 128, metric, value, ends)
                rows.append(row | {"kind": f"sampled, temperature {temperature:g}"})


def _prompt_length(
    rows: dict[str, list[Row]],
    chance: random.Random,
    winner: str,
    dataset: str,
    prompts: int,
    intervals: bool,
    length: int,
) -> None:
    for method in PROMPT_METHODS:
        settings, speed = SETTINGS.get(method, "default"), _speed(method, winner)
        speed = 1 + (speed - 1) * (1.2 - length / 2500)
        first = 45 + 1.1 * length * chance.uniform(0.97, 1.06)
        metrics = {"speedup": speed, "tpot_ms": (45 + length / 100) / speed, "ttft_ms": first}
        for prompt in range(prompts):
            key = _key("prompt_length", method, settings, dataset, prompt) | {"dtype": "float32"}
            strays = {name: value * chance.uniform(0.9, 1.1) for name, value in metrics.items()}
            rows["runs"].append(key | {"prompt_tokens": length, "batch": 1, "output_tokens": 200} | strays)
        for metric, value in metrics.items():
            ends = _ends(chance, value, intervals, exact=speed == 1.0 and metric == "speedup")
            rows["summary"].append(
                _summary("prompt_length", method, settings, dataset, prompts, length, metric, value, ends)
            )
