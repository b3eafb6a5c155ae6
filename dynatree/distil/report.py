"""How good a drafter is on its own: agreement with its target, calibration, cost of a step, simulated speeds."""

import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynatree.costs.calibration import Calibration
from dynatree.distil import simulate
from dynatree.distil.labels import continuations, score
from dynatree.distil.unrolled import drafted
from dynatree.engine.compatibility import pair_up
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError

RANKS = (1, 2, 3, 8)
FIRST, LATER = 32, 96  # tokens of a continuation: agreement is told apart before and behind the first
_BINS = 10
_STEPS = 30


class Followed(NamedTuple):
    """Token ids [rows, length] and the target's greedy choice behind each of them [rows, length]."""

    tokens: Tensor
    choices: Tensor


class Passages(NamedTuple):
    """Of one text: rows of it, and what the target writes behind `prompt_tokens` of it."""

    text: Followed
    written: Followed
    prompt_tokens: int


def follow(target: LanguageModel, texts: Mapping[str, Tensor], tokens: int, length: int) -> dict[str, Passages]:
    """The target's choices along each text and along greedy continuations of it: all that a report asks the target.

    `texts` are token ids [n] by name; up to `tokens` of each are read, in rows of `length` spread over it, and as many
    in prompts of half that length. By torch's weights: of a target in int8 or int4 those before it is quantised. Raises
    UserError for a text too short.
    """
    found = {}
    for name, text in texts.items():
        prompts = spread(name, text, length // 2, tokens)
        greedy = torch.zeros(len(prompts))
        rows = score(target.model, spread(name, text, length, tokens), 1)
        written = continuations(target.model, prompts, LATER + 1, greedy, 1, torch.Generator())
        along, behind = (Followed(part["tokens"].long(), part["ids"][..., 0].long()) for part in (rows, written))
        found[name] = Passages(along, behind, prompts.shape[1])
    return found


def report(
    target: LanguageModel,
    drafter: DraftModel,
    passages: Mapping[str, Passages],
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Agreement along the `passages` that the target was followed on, calibration there, and the cost of a step.

    With the `calibration` of the pair also the speeds that decoding the continuations would have (simulate.py). Raises
    UserError for a drafter that reads other tokens.
    """
    pair_up(target, drafter)
    context = max(of.prompt_tokens for of in passages.values())
    found: dict[str, Any] = {"agreement": {}, "cost": cost(target, drafter, context), "simulated": {}}
    for name, (text, written, prompt_tokens) in passages.items():
        found["agreement"][name] = compare(drafter, target, text, 0, text.tokens.shape[1])
        start = prompt_tokens - 1  # this position predicts the first new token
        parts = {"first": (start, start + FIRST), "later": (start + FIRST, start + LATER)}
        for part, (begin, end) in parts.items():
            found["agreement"][f"{name}, continuations, {part} tokens"] = compare(drafter, target, written, begin, end)
        if calibration:
            pairs = [(row[:prompt_tokens], row[prompt_tokens:]) for row in written.tokens.tolist()]
            found["simulated"][name] = simulate.simulate(drafter, pairs, calibration, target)
    return found


def spread(name: str, text: Tensor, length: int, tokens: int) -> Tensor:
    """Rows [n, length] of `text` [m], at even distances, up to `tokens` in all. Raises UserError if it is too short."""
    count = min(max(1, tokens // length), len(text) // length)
    if count < 1:
        raise UserError(f"{name}: {len(text)} tokens; give at least {length}")
    starts = torch.linspace(0, len(text) - length, count).long()
    return torch.stack([text[start : start + length] for start in starts])


@torch.inference_mode()
def compare(drafter: DraftModel, target: LanguageModel, followed: Followed, begin: int, end: int) -> dict[str, Any]:
    """How the drafter's choices in its vocabulary meet the target's greedy one, at positions `begin`..`end` - 1.

    `top1`..`top8`: share of positions whose greedy choice is among the drafter's first choices. `covered`: share whose
    greedy choice is in the vocabulary. `ece`: expected calibration error of the first choice's probability (Guo et
    al., ICML 2017) over the equal bins of `reliability`. A drafter that reads states of `target` has none before
    position 1, and is measured at its first level.
    """
    vocabulary = torch.arange(drafter.vocabulary_size) if drafter.vocabulary is None else drafter.vocabulary
    vocabulary = vocabulary.to(drafter.device)
    ranks = min(max(RANKS), len(vocabulary))
    hits, sure, covered = [], [], []
    for tokens, choices in zip(*followed, strict=True):
        logits = drafted(drafter, target, tokens[:end], 1)[0]
        logits = logits[max(0, begin - (end - len(logits))) :]
        wanted = choices[end - len(logits) : end].to(drafter.device)
        best = logits.softmax(-1).topk(ranks, dim=-1)
        hits.append(vocabulary[best.indices] == wanted[:, None])
        sure.append(best.values[:, 0])
        covered.append(torch.isin(wanted, vocabulary))
    hit, probability = torch.cat(hits).cpu(), torch.cat(sure).cpu()
    bins = reliability(probability, hit[:, 0])
    error = sum(b["positions"] * abs(b["probability"] - b["agreement"]) for b in bins) / len(hit)
    return {
        "positions": len(hit),
        **{f"top{rank}": round(hit[:, :rank].any(-1).float().mean().item(), 4) for rank in RANKS},
        "covered": round(torch.cat(covered).float().mean().item(), 4),
        "ece": round(error, 4),
        "reliability": bins,
    }


def reliability(probability: Tensor, hit: Tensor) -> list[dict[str, Any]]:
    """Equal bins of `probability` [n] that are not empty: its mean, the share of `hit` [n] and the count of each."""
    bins = (probability * _BINS).long().clamp(max=_BINS - 1)
    found = []
    for number in bins.unique().tolist():
        here = bins == number
        found.append(
            {
                "probability": round(probability[here].mean().item(), 4),
                "agreement": round(hit[here].float().mean().item(), 4),
                "positions": int(here.sum()),
            }
        )
    return found


def cost(target: LanguageModel, drafter: DraftModel, context: int) -> dict[str, Any]:
    """Median seconds of a forward of one token behind `context` others, drafter and target in turn, and their ratio."""
    seconds: dict[str, list[float]] = {"target": [], "drafter": []}
    forwards = {"target": target.forward, "drafter": drafter.draft}
    caches = {"target": target.new_caches(1)[0], "drafter": drafter.new_caches(1)[0]}
    ids = torch.arange(context) % target.vocabulary_size
    with target.threads():
        for role, forward in forwards.items():
            forward(ids, caches[role], last=1)
        for _ in range(1 + _STEPS):
            for role, forward in forwards.items():
                begun = time.perf_counter()
                forward(ids[:1], caches[role]).argmax().item()  # .item() waits for the device
                seconds[role].append(time.perf_counter() - begun)
                caches[role].crop(context)
    # The first of each may have to make its graph.
    median = {role: statistics.median(values[1:]) for role, values in seconds.items()}
    return {
        "context": context,
        "target_seconds": round(median["target"], 6),
        "drafter_seconds": round(median["drafter"], 6),
        "ratio": round(median["drafter"] / median["target"], 4),
    }


def describe(found: dict[str, Any]) -> str:
    """The report as tables for people."""
    keys = [*(f"top{rank}" for rank in RANKS), "covered", "ece"]
    lines = [f"{'agreement':48}" + "".join(f"{key:>9}" for key in keys)]
    for name, values in found["agreement"].items():
        lines.append(f"{name:48}" + "".join(f"{values[key]:9.3f}" for key in keys))
    cost = found["cost"]
    lines.append(
        f"a drafter step takes {1000 * cost['drafter_seconds']:.1f} ms, a target step "
        f"{1000 * cost['target_seconds']:.1f} ms: {100 * cost['ratio']:.0f} %"
    )
    if not found["simulated"]:
        return "\n".join([*lines, "no simulated speeds: no calibration of this pair was given"])
    for name, rows in found["simulated"].items():
        lines.append(
            f"{f'simulated on {name}':48}" + "".join(f"{key:>14}" for key in ("tokens/round", "tokens/s", "speedup"))
        )
        for row in rows:
            label = f"{row['method']} {row['setting']}".strip()
            values = [
                f"{row['tokens_per_round']:14.2f}",
                f"{row['tokens_per_second']:14.1f}",
                f"{row['speedup']:13.2f}x",
            ]
            lines.append(f"  {label:46}" + "".join(values))
    return "\n".join(lines)


def rank(reports: Mapping[str, dict[str, Any]]) -> str:
    """Reports of several drafters as a table, a row each: the fastest chain or tree on each text; fastest first.

    By speedup over autoregressive decoding, whose mean over texts is geometric: each drafter has a calibration of its
    own, and a machine has slow days. Lookup, which needs no drafter, stands below.
    """
    texts = list(next(iter(reports.values()))["simulated"])
    wide = max(len("lookup alone"), *map(len, reports)) + 2
    lines = [f"{'drafter':{wide}}{'step':>6}" + "".join(f"{text:>24}" for text in texts) + f"{'mean':>9}"]
    table = {
        name: [fastest(found["simulated"][text], ("chain", "tree")) for text in texts]
        for name, found in reports.items()
    }

    def mean(name: str) -> float:
        return statistics.geometric_mean(row["speedup"] for row in table[name])

    def cells(rows: list[dict[str, Any]]) -> str:
        speeds = "".join(f"{row['method'] + ' ' + row['setting']:>17}{row['speedup']:6.2f}x" for row in rows)
        return speeds + f"{statistics.geometric_mean(row['speedup'] for row in rows):8.2f}x"

    for name in sorted(table, key=mean, reverse=True):
        lines.append(f"{name:{wide}}{100 * reports[name]['cost']['ratio']:4.0f} %" + cells(table[name]))
    first = next(iter(reports.values()))["simulated"]
    alone = [fastest(first[text], ("lookup", "prompt_lookup")) for text in texts]
    return "\n".join([*lines, f"{'lookup alone':{wide}}{'':6}" + cells(alone)])


def fastest(rows: list[dict[str, Any]], methods: tuple[str, ...]) -> dict[str, Any]:
    """Of simulated rows of these methods the fastest."""
    return max((row for row in rows if row["method"] in methods), key=lambda row: row["tokens_per_second"])
