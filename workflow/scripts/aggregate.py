"""Turn the raw records of the given run folders into tidy tables, metrics.json, pace.json and tables for plots."""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

from dynatree import files
from dynatree.data.documents import write_table
from dynatree.engine.tokenizer import text_tokenizer
from dynatree.errors import UserError, reported
from dynatree.tables import headline, metrics, rounds


def parser() -> argparse.ArgumentParser:
    """What the script takes."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--runs", type=Path, nargs="*", required=True, help="run folders")
    made.add_argument("--timeline", type=Path, nargs="*", default=[], help="folders of instrumented passes")
    made.add_argument("--memory", type=Path, nargs="*", default=[], help="folders of measurements of memory")
    made.add_argument("--perplexity", type=Path, nargs="*", default=[], help="JSON files, one a data set and format")
    made.add_argument("--costs", type=Path, nargs="*", default=[], help="costs.json and batches.json")
    made.add_argument("--calibrations", type=Path, nargs="*", default=[], help="further ones that runs used: checked")
    made.add_argument("--drafter", type=Path, help="the drafter's report")
    made.add_argument("--model", type=Path, required=True, help="model folder with tokenizer.json")
    made.add_argument("--results", type=Path, required=True, help="folder that the runs' folders are named below")
    made.add_argument("--missing", nargs="*", default=[], help="runs asked for that are not there: named, left out")
    made.add_argument("--out", type=Path, required=True, help="folder for what is made")
    return made


def aggregate(a: argparse.Namespace, decode: Callable[[list[int]], str]) -> None:
    """Write all tables. Raises UserError if records are of different machines."""
    records = [metrics.Records.read(a.results, folder) for folder in a.runs]
    machines = {str(folder): record.machine for folder, record in zip(a.runs, records, strict=True)}
    # Not those of memory, which is no timing: on a cluster its jobs share a node.
    others = [*(folder / files.PHASES for folder in a.timeline), *a.costs, *a.calibrations]
    others += [a.drafter] if a.drafter else []
    machine = metrics.same_machine(machines | {str(path): files.read_json(path)["machine"] for path in others})
    rows = {
        "runs": metrics.runs(records),
        "rounds": rounds.rounds(records),
        "parts": rounds.parts(records),
        "nodes": rounds.nodes(records, decode) + rounds.pass_nodes(a.results, a.timeline, decode),
        "phases": rounds.phases(a.results, a.timeline, decode),
        "memory": [row for folder in a.memory for row in metrics.memory(a.results, folder)],
        "costs": [row for path in a.costs for row in metrics.costs(path)],
        "drafter": metrics.drafter(a.drafter) if a.drafter else [],
        "perplexity": [metrics.perplexity(path) for path in a.perplexity],
    }
    rows["summary"] = metrics.summary(rows["runs"])
    for name, content in rows.items():
        write_table(a.out / f"{name}.parquet", metrics.table(name, content))
    files.write_json(a.out / "metrics.json", headline.headline(rows["runs"], machine))
    files.write_json(a.out / "pace.json", headline.pace(rows["runs"], machine))
    for name, content in headline.plots(rows["runs"]).items():
        files.write_json(a.out / f"plots/{name}.json", content)


def main() -> None:
    a = parser().parse_args()
    with reported():
        for run in a.missing:
            print(f"missing: {run}")
        if not a.runs:
            raise UserError(f"no run of {len(a.missing)} is finished; nothing to aggregate")
        tokenizer = text_tokenizer(a.model)
        cached = cache(lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False))
        aggregate(a, lambda ids: cached(tuple(ids)))


if __name__ == "__main__":
    main()
