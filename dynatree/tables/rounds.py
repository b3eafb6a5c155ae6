"""What happened within runs: rows of the tables `rounds`, `nodes`, `phases` and `parts` (schema.py).

Knows no model; token ids become text through a function that the caller gives.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dynatree import files
from dynatree.tables import bootstrap
from dynatree.tables.metrics import Records, prompt_key, run_key, step_seconds

Row = dict[str, Any]
Decode = Callable[[list[int]], str]

TOKEN_SEPARATOR = "\u241f"
REPEATED_NGRAM = 17  # tokens whose last one the audit marks (audit.py, which needs a model)


def rounds(records: list[Records]) -> list[Row]:
    """Rows of the table `rounds`."""
    rows = []
    for record in records:
        for output, timing in zip(record.outputs, record.timings, strict=True):
            total = output["first"]
            key = {**record.key, "prompt_id": output["prompt_id"], "repeat": output["repeat"]}
            for number, (fact, commit) in enumerate(zip(output["rounds"], timing["commits"][1:], strict=True)):
                total += len(fact["emitted"])
                row = {**key, "round": number, "emitted": len(fact["emitted"])}
                row |= {name: fact[name] for name in ("drafted", "depth", "accepted", "draft_forwards")}
                rows.append({**row, "commit_ms": 1000 * commit, "output_tokens": total})
    return rows


def nodes(records: list[Records], decode: Decode) -> list[Row]:
    """Rows of the table `nodes`: every verified node of the methods that record their trees."""
    outputs = [({**record.key, "repeat": output["repeat"]}, output) for record in records for output in record.outputs]
    return [row for key, output in outputs for row in _tree_rows(key, output, decode)]


def pass_nodes(results: Path, folders: Sequence[Path], decode: Decode) -> list[Row]:
    """The same of instrumented passes, whose rounds are those of the table `phases`."""
    records = [
        ({**run_key(results, folder), "repeat": 0}, files.read_json(folder / files.PHASES)) for folder in folders
    ]
    return [row for key, record in records for row in _tree_rows(key, record, decode)]


def _tree_rows(key: Row, output: Row, decode: Decode) -> list[Row]:
    return [
        {**key, "prompt_id": output["prompt_id"], "round": number, **node}
        for number, fact in enumerate(output["rounds"])
        if fact["tree"]
        for node in node_rows(fact, decode)
    ]


def node_rows(fact: Row, decode: Decode) -> list[Row]:
    """The nodes of one round's record that holds its tree, as in the table `nodes`, without the run's key."""
    tokens, parents, log_probs = (fact["tree"][name] for name in ("tokens", "parents", "log_probs"))
    path = set(fact["path"])
    depths = [0] * len(tokens)
    siblings: dict[int, list[int]] = {}
    for node in range(1, len(tokens)):
        depths[node] = depths[parents[node]] + 1
        siblings.setdefault(parents[node], []).append(node)
    # Siblings share their parent's path, so the order of path log-probabilities is that of the steps.
    rank = {
        node: place
        for group in siblings.values()
        for place, node in enumerate(sorted(group, key=lambda n: (-log_probs[n], n)))
    }
    return [
        {
            "node": node,
            "parent": parents[node],
            "depth": depths[node],
            "rank": rank.get(node, 0),
            "token": tokens[node],
            "text": decode([tokens[node]]),
            "path_log_probability": log_probs[node],
            "accepted": node in path,
            "hit": node in path if parents[node] in path or node == 0 else None,
        }
        for node in range(len(tokens))
    ]


def phases(results: Path, folders: Sequence[Path], decode: Decode) -> list[Row]:
    """Rows of the table `phases` from instrumented passes, all at the pace that is usual among them."""
    records = [files.read_json(folder / files.PHASES) for folder in folders]
    samples = [seconds for record in records for seconds in record["references"]]
    steps = [step_seconds(record["references"], samples) for record in records]
    usual = bootstrap.median(steps) if steps else 0.0
    rows = []
    for folder, record, step in zip(folders, records, steps, strict=True):
        rows += _phase_rows(run_key(results, folder), record, usual / step, decode)
    return rows


def _phase_rows(run: Row, record: Row, pace: float, decode: Decode) -> list[Row]:
    facts = {-1: (record["output_ids"][: record["first"]], 0)}
    facts |= {number: (fact["emitted"], fact["accepted"]) for number, fact in enumerate(record["rounds"])}
    key = {**run, "repeat": 0}
    return [
        {
            **key,
            "prompt_id": record["prompt_id"],
            "round": number,
            "phase": name,
            "start_ms": 1000 * pace * start,
            "end_ms": 1000 * pace * end,
            "forward_ms": 1000 * pace * sum(e - b for b, e in record["forwards"] if start <= b and e <= end),
            "emitted": len(facts[number][0]),
            "text": TOKEN_SEPARATOR.join(decode([token]) for token in facts[number][0]),
            "accepted": facts[number][1],
        }
        for number, name, start, end in record["spans"]
    ]


def parts(records: list[Records]) -> list[Row]:
    """Rows of the table `parts`: speed in each quarter of an output, in its loops and outside, of lone requests.

    The tokens of a round are taken to have come one by one while it lasted, so that none takes no time.
    """
    rows = [row for record in records for row in _part_rows(record)]
    autoregressive = {(*prompt_key(row), row["part"]): row for row in rows if row["method"] == "autoregressive"}
    for row in rows:
        own = autoregressive.get((*prompt_key(row), row["part"]))
        row["speedup"] = own["normalised_seconds_per_token"] / row["normalised_seconds_per_token"] if own else None
        del row["batch"], row["dtype"], row["output_tokens"]
    return rows


def _part_rows(record: Records) -> list[Row]:
    rows = []
    for output, timing, audit, step in zip(record.outputs, record.timings, record.audit, record.steps, strict=True):
        if timing["batch"] > 1:
            continue
        repeated, total = _whole(audit["repeated"]), len(output["output_ids"])
        seconds = token_seconds(output["first"], [len(fact["emitted"]) for fact in output["rounds"]], timing["commits"])
        members = parts_of(seconds, total)
        for place, taken in seconds.items():
            members.setdefault("loops" if repeated[place] else "new text", []).append(taken)
        key = {**record.key, **{n: output[n] for n in ("prompt_id", "repeat", "document_id", "prompt_tokens")}}
        rows += [
            {**key, "batch": timing["batch"], "dtype": record.dtype, "output_tokens": total}
            | {"part": part, "tokens": len(taken)}
            | {"normalised_seconds_per_token": sum(taken) / len(taken) / step}
            for part, taken in members.items()
        ]
    return rows


def token_seconds(first: int, counts: Sequence[int], commits: Sequence[float]) -> dict[int, float]:
    """Seconds of each token by its place in the output: of the rounds' `counts`, committed at the seconds `commits`.

    The `first` commit's came with the prefill, and are left out.
    """
    seconds: dict[int, float] = {}
    for count, (begin, end) in zip(counts, pairwise(commits), strict=True):
        start = first + len(seconds)
        seconds |= dict.fromkeys(range(start, start + count), (end - begin) / count)
    return seconds


def parts_of(seconds: dict[int, float], total: int) -> dict[str, list[float]]:
    """Those seconds by quarter of an output of `total` tokens, `quarter 1` to `quarter 4`."""
    members: dict[str, list[float]] = {}
    for place, taken in seconds.items():
        members.setdefault(f"quarter {1 + 4 * place // total}", []).append(taken)
    return members


def _whole(ends: list[bool]) -> list[bool]:
    """Whether each token belongs to an n-gram that occurred earlier, of whether one ends there."""
    marked, left = [], 0
    for end in reversed(ends):
        left = REPEATED_NGRAM if end else left - 1
        marked.append(left > 0)
    return marked[::-1]
