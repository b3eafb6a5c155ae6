"""Turn the raw records of the given run folders into tidy Parquet tables and metrics.json."""

import argparse
from functools import cache
from pathlib import Path

from dynatree import files
from dynatree.data.documents import write_table
from dynatree.engine.tokenizer import text_tokenizer
from dynatree.errors import UserError, reported
from dynatree.tables import metrics, rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="*", required=True, help="run folders")
    parser.add_argument("--timeline", type=Path, nargs="*", default=[], help="folders of instrumented passes")
    parser.add_argument("--memory", type=Path, nargs="*", default=[], help="folders of measurements of memory")
    parser.add_argument("--perplexity", type=Path, nargs="*", default=[], help="JSON files, one a data set")
    parser.add_argument("--costs", type=Path, nargs="*", default=[], help="costs.json and batches.json")
    parser.add_argument("--drafter", type=Path, help="the drafter's report")
    parser.add_argument("--model", type=Path, required=True, help="model folder with tokenizer.json")
    parser.add_argument("--results", type=Path, required=True, help="folder that the runs' folders are named below")
    parser.add_argument("--missing", nargs="*", default=[], help="runs asked for that are not there: named, left out")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and metrics.json")
    a = parser.parse_args()
    with reported():
        for run in a.missing:
            print(f"missing: {run}")
        if not a.runs:
            raise UserError(f"no run of {len(a.missing)} is finished; nothing to aggregate")
        tokenizer = text_tokenizer(a.model)
        cached = cache(lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False))

        def decode(ids: list[int]) -> str:
            return cached(tuple(ids))

        records = [metrics.Records.read(a.results, folder) for folder in a.runs]
        machines = {str(folder): record.machine for folder, record in zip(a.runs, records, strict=True)}
        # Not those of memory, which is no timing: on a cluster its jobs share a node.
        others = [folder / files.PHASES for folder in a.timeline] + [*a.costs, *([a.drafter] if a.drafter else [])]
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
            "perplexity": [files.read_json(path) for path in a.perplexity],
        }
        rows["summary"] = metrics.summary(rows["runs"])
        for name, content in rows.items():
            write_table(a.out / f"{name}.parquet", metrics.table(name, content))
        files.write_json(a.out / "metrics.json", metrics.headline(rows["runs"], rows["perplexity"], machine))


if __name__ == "__main__":
    main()
