"""From raw records to tidy tables (schema.py). Every number of a figure comes through here.

What happened within a run is in rounds.py, what is read at a glance in headline.py. Knows no model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dynatree import files
from dynatree.errors import UserError
from dynatree.tables import bootstrap
from dynatree.tables.schema import TABLES

Row = dict[str, Any]
MIB = 2**20
# The format that others are compared with.
FULL = "float32"
GEOMETRIC = (
    "seconds",
    "normalised_seconds",
    "autoregressive_step_ms",
    "ttft_ms",
    "tpot_ms",
    "throughput",
    "decode_throughput",
    "speedup",
    "speedup_transformers",
    "perplexity",
)
# A sample of the clock that took longer than so many medians met a stall that its run need not have met.
STALLED, FEW = 1.5, 3
# The parts of a machine's description that timings must share to be compared; memory size is not one of them.
COMPARABLE = (
    *("processor", "cores", "gpu", "threads", "dtype"),
    *("python", "torch", "transformers", "openvino", "kernels"),
)


@dataclass(frozen=True)
class Records:
    """The raw records of one run folder and its place in the experiment."""

    key: Row  # experiment, method, settings, dataset
    outputs: list[Row]
    timings: list[Row]
    audit: list[Row]
    machine: Row
    options: Row = field(default_factory=dict)  # of the generations, where they are not greedy
    drafter: str | None = None  # its name; of a method without one: none

    @property
    def dtype(self) -> str:
        """The format in which the models computed."""
        return str(self.machine["dtype"])

    @property
    def steps(self) -> list[float]:
        """Of each timing the seconds of an autoregressive step meanwhile."""
        samples = [seconds for timing in self.timings for seconds in timing["references"]]
        return [step_seconds(timing["references"], samples) for timing in self.timings]

    @staticmethod
    def read(results: Path, folder: Path) -> "Records":
        """Records of `folder`: <runs, or experiment>/<method>/<settings>/.../<dataset> in `results`."""
        timed = files.read_json(folder / files.TIMINGS)
        return Records(
            key=run_key(results, folder),
            outputs=files.read_jsonl(folder / files.OUTPUTS),
            timings=timed["timings"],
            audit=files.read_jsonl(folder / files.AUDIT),
            machine=timed["machine"],
            options=timed.get("options", {}),
            drafter=timed.get("drafter"),
        )


def run_key(results: Path, folder: Path) -> Row:
    top, method, settings, *_, dataset = folder.relative_to(results).parts
    experiment = "headline" if top == "runs" else top
    return {"experiment": experiment, "method": method, "settings": settings, "dataset": dataset}


def perplexity(path: Path) -> Row:
    """A row of the table `perplexity`, from the file of one data set in one format."""
    return {"dtype": None, **files.read_json(path)}


def same_machine(machines: Mapping[str, Row]) -> Row:
    """The machine of all records, which `machines` names. Raises UserError if timings cannot be compared.

    Runs whose folder names their format are compared within it.
    """
    apart = {name for name, machine in machines.items() if machine["dtype"] in Path(name).parts}
    (name, first), *others = sorted(machines.items(), key=lambda named: named[0] in apart)
    for other, machine in others:
        for key in COMPARABLE:
            if first.get(key) != machine.get(key) and not (key == "dtype" and other in apart):
                raise UserError(
                    f"timings are not comparable: {key} is {first.get(key)!r} for {name} but {machine.get(key)!r} for "
                    f"{other}; measure all of them again on one machine: "
                    "snakemake --cores 1 --forcerun calibrate generate timeline memory drafter_report -- all"
                )
    return first


def runs(records: list[Records]) -> list[Row]:
    """Rows of the table `runs`: one a prompt, method and repeat."""
    usual = {dtype: usual_step([r for r in records if r.dtype == dtype]) for dtype in {r.dtype for r in records}}
    rows = [row for record in records for row in _run_rows(record, usual[record.dtype])]
    autoregressive = {prompt_key(row): row for row in rows if row["method"] == "autoregressive"}
    theirs = {prompt_key(row): row for row in rows if row["method"] == "transformers"}
    in_full = {(row["method"], row["settings"], *prompt_key(row)): row for row in rows if row["dtype"] == FULL}
    for row in rows:
        own, other = autoregressive.get(prompt_key(row)), theirs.get(prompt_key(row))
        row["speedup"] = own["normalised_seconds"] / row["normalised_seconds"] if own else None
        row["speedup_transformers"] = other["normalised_seconds"] / row["normalised_seconds"] if other else None
        # Where tokens were drawn otherwise no flips are told, and there is nothing to be identical with.
        comparable = own if row["flips"] is not None else None
        row["identical"] = row["output_ids"] == comparable["output_ids"] if comparable else None
        full = in_full.get((row["method"], row["settings"], *prompt_key(row | {"dtype": FULL})))
        row["identical_float32"] = row["output_ids"] == full["output_ids"] if full else None
    return [{name: row[name] for name in TABLES["runs"].names} for row in rows]


def usual_step(records: list[Records]) -> float:
    """Seconds of an autoregressive step during the main runs of autoregressive decoding, if they are among `records` of
    one format: what is measured anew moves no other time.
    """
    usual = [r for r in records if (r.key["experiment"], r.key["method"]) == ("headline", "autoregressive")]
    return bootstrap.median([step for record in usual or records for step in record.steps])


def step_seconds(references: Sequence[float], among: Sequence[float] = ()) -> float:
    """Seconds of an autoregressive step while a request ran; they divide its own, as machines have slower minutes.

    The mean of its samples, the `references`, since a request takes the sum of what it meets; one that met a stall
    alone counts no more than STALLED times the median (of two nobody knows which). Of FEW it weighs too much even so,
    and the median may be of a stall: those that met one, by the median of all that were taken around them, `among`, are
    left out; but where all three are as slow, the machine was.
    """
    middle, around = bootstrap.median(references), bootstrap.median(among or references)
    if len(references) != FEW or min(references) > STALLED * around:
        return bootstrap.mean([min(seconds, STALLED * middle) for seconds in references], geometric=False)
    most = STALLED * min(middle, around)
    return bootstrap.mean([seconds for seconds in references if seconds <= most], geometric=False)


COMPARED = ("experiment", "dataset", "prompt_tokens", "output_tokens", "batch", "dtype", "prompt_id", "repeat")


def prompt_key(row: Row) -> tuple[Any, ...]:
    """What runs have in common that are compared; no longer output than another, which a run of other sizes left."""
    return tuple(row[key] for key in COMPARED)


def _run_rows(record: Records, usual: float) -> Iterable[Row]:
    # Only the last group of a repeat may be smaller than the others.
    batch, place = max((timing["batch"] for timing in record.timings), default=1), Counter[int]()
    for output, timing, audit, step in zip(record.outputs, record.timings, record.audit, record.steps, strict=True):
        rounds = output["rounds"]
        emitted, later = len(output["output_ids"]), len(output["output_ids"]) - output["first"]
        references = timing["references"]
        pace = usual / step
        seconds, first = pace * timing["seconds"], pace * timing["commits"][0]
        tpot = (pace * timing["commits"][-1] - first) / later if later else None
        drafted = sum(r["drafted"] for r in rounds)
        depth = sum(r["depth"] for r in rounds)
        accepted = sum(r["accepted"] for r in rounds)
        yield {
            **record.key,
            "prompt_id": output["prompt_id"],
            "repeat": output["repeat"],
            "document_id": output["document_id"],
            "output_ids": output["output_ids"],
            "prompt_tokens": output["prompt_tokens"],
            "batch": timing["batch"],
            "dtype": record.dtype,
            "drafter": record.drafter,
            "kind": kind_of_text(record.options),
            "group": place[output["repeat"]] // batch,
            "output_tokens": emitted,
            "seconds": timing["seconds"],
            "pace": pace,
            "throughput": timing["batch_tokens"] / seconds,
            "ttft_ms": 1000 * first,
            "tpot_ms": 1000 * tpot if tpot is not None else None,
            "decode_throughput": 1 / tpot if tpot else None,
            "autoregressive_step_ms": 1000 * step,
            "autoregressive_step_spread": bootstrap.deviation(references) / bootstrap.mean(references, geometric=False),
            "normalised_seconds": timing["seconds"] / step,
            "peak_mib": None if timing["peak_bytes"] is None else timing["peak_bytes"] / MIB,
            "iterations": len(rounds),
            "tokens_per_iteration": later / len(rounds) if rounds else None,
            "target_forwards": output["target_forwards"],
            "draft_forwards": output["draft_forwards"],
            "tokens_per_target_forward": later / output["target_forwards"] if output["target_forwards"] else None,
            "drafted": drafted,
            "drafted_depth": depth,
            "accepted": accepted,
            "acceptance_rate": accepted / depth if depth else None,
            "node_efficiency": accepted / drafted if drafted else None,
            "mean_path_length": accepted / len(rounds) if rounds else None,
            **{name: audit[name] for name in ("flips", "first_flip", "largest_gap", "perplexity", "repetition")},
        }
        place[output["repeat"]] += 1


_OPTIONS = {
    "repetition_penalty": "repetition penalty {:g}",
    "no_repeat_ngram_size": "no {}-gram twice",
    "temperature": "temperature {:g}",
    "top_k": "top-k {}",
    "top_p": "top-p {:g}",
    "min_p": "min-p {:g}",
    "seed": "seed {}",
}


_GREEDY = ("repetition_penalty", "no_repeat_ngram_size")


def kind_of_text(options: Row) -> str:
    """Options of a generation in words: `greedy`, `sampled, temperature 0.7, top-p 0.95`."""
    sampled = options.get("do_sample") and options.get("temperature") != 0
    given = {"temperature": 1.0, **options} if sampled else options
    names = [name for name in _OPTIONS if sampled or name in _GREEDY]
    told = [_OPTIONS[name].format(given[name]) for name in names if name in given]
    return ", ".join(["sampled" if sampled else "greedy", *told])


def memory(results: Path, folder: Path) -> list[Row]:
    """The row of the table `memory` from one method's record, `.../<method>/<settings>/<dataset>/memory.json`."""
    record = {**files.read_json(folder / files.MEMORY), **run_key(results, folder)}
    return [{name: record[name] for name in TABLES["memory"].names}]


def costs(path: Path) -> list[Row]:
    """Rows of the table `costs` from a calibration's `costs.json` or `batches.json`."""
    table = files.read_json(path)
    alone, dtype = [(1, table)] if "verify" in table else [], table["machine"]["dtype"]
    return [
        {"part": part, "dtype": dtype, "batch": batch, "context": context, "tokens": tokens, "ms": 1000 * seconds}
        for batch, curves in [*alone, *((measured["rows"], measured) for measured in table.get("batches", []))]
        for part in ("verify", "draft")
        if (curve := curves[part])
        for context, row in zip(curve["contexts"], curve["seconds"], strict=True)
        for tokens, seconds in zip(curve["tokens"], row, strict=True)
    ]


def llama_cpp_costs(theirs: Row, machine: Row, ours: Sequence[Path]) -> list[Row]:
    """Rows of the table `llama_cpp_costs`: the curve `theirs` (cost_table.py), and of each of `ours`, calibrations'
    `costs.json`, what a forward costs behind the context that is nearest to its.

    Raises UserError where they were not measured on one machine; `machine` is that of `theirs`.
    """
    tables = {str(path): files.read_json(path) for path in ours}
    same_machine({"llama.cpp": machine} | {name: table["machine"] for name, table in tables.items()})
    (context,) = theirs["contexts"]
    found: list[Row] = []
    for engine, curve in [("llama_cpp", theirs), *((t["machine"]["dtype"], t["verify"]) for t in tables.values())]:
        place = min(range(len(curve["contexts"])), key=lambda i: abs(curve["contexts"][i] - context))
        found += [
            {"engine": engine, "context": curve["contexts"][place], "tokens": tokens, "ms": 1000 * seconds}
            for tokens, seconds in zip(curve["tokens"], curve["seconds"][place], strict=True)
        ]
    return found


def drafter(path: Path) -> list[Row]:
    """Rows of the table `drafter` from the drafter's report: agreement by rank, then simulated speeds."""
    found = files.read_json(path)
    rows: list[Row] = []
    for name, values in found["agreement"].items():
        dataset, _, part = name.partition(", ")
        for key, share in values.items():
            if key.startswith("top"):
                row = {"kind": "agreement", "dataset": dataset, "part": part or "text", "rank": int(key[3:])}
                rows.append({**row, "positions": values["positions"], "agreement": share})
    for dataset, simulated in found["simulated"].items():
        rows += [{"kind": "simulated", "dataset": dataset, "part": "continuations", **row} for row in simulated]
    return rows


def summary(run_rows: list[Row]) -> list[Row]:
    """Rows of the table `summary`: every real-valued metric per group of runs alike but for their prompts."""
    names = [field.name for field in TABLES["summary"]]
    keys = names[: names.index("metric")]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in run_rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    rows = []
    metrics = [field.name for field in TABLES["runs"] if field.type == pa.float64()]
    for group, members in groups.items():
        key = dict(zip(keys, group, strict=True))
        for metric in metrics:
            present = [row for row in members if row[metric] is not None]
            if present:
                rows.append({**key, "metric": metric, **summarise(present, metric)})
    return rows


def summarise(rows: list[Row], metric: str) -> Row:
    """Mean of a metric over rows that all have it, its bootstrap interval, and what they are of."""
    values, documents = [row[metric] for row in rows], [row["document_id"] for row in rows]
    geometric, batch = metric in GEOMETRIC, max(row["batch"] for row in rows)
    # What was decoded together was measured together: it is drawn together, and counts as one.
    groups = documents if batch == 1 else [str(row["group"]) for row in rows]
    ends = bootstrap.interval(values, groups, geometric)
    measured = len({row["prompt_id"] if batch == 1 else row["group"] for row in rows})
    return {
        "prompts": len({row["prompt_id"] for row in rows}),
        "documents": len(set(documents)),
        "measurements": measured,
        "output_tokens": max(row["output_tokens"] for row in rows),
        "value": bootstrap.mean(values, geometric),
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
        "significant": bootstrap.significant(ends, measured) if metric.startswith("speedup") else None,
    }


def table(name: str, rows: list[Row]) -> pa.Table:
    """Rows as the Arrow table `name` of schema.py."""
    return pa.Table.from_pylist(rows, schema=TABLES[name])
