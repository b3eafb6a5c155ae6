"""Turn the raw records of the given run folders into tidy Parquet tables and metrics.json."""

import argparse
from functools import cache
from pathlib import Path

from dynatree import files, metrics
from dynatree.errors import reported
from dynatree.text.documents import write_table
from dynatree.tokenizer import text_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders")
    parser.add_argument("--timeline", type=Path, nargs="+", required=True, help="folders of instrumented passes")
    parser.add_argument("--perplexity", type=Path, nargs="+", required=True, help="JSON files, one a data set")
    parser.add_argument("--costs", type=Path, required=True, help="costs.json of the calibration")
    parser.add_argument("--drafter", type=Path, required=True, help="the drafter's report")
    parser.add_argument("--model", type=Path, required=True, help="model folder with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and metrics.json")
    a = parser.parse_args()
    with reported():
        tokenizer = text_tokenizer(a.model)
        decode = cache(lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False))
        records = [metrics.Records.read(folder) for folder in a.runs]
        machine = metrics.same_machine(records)
        rows = {
            "runs": metrics.runs(records),
            "rounds": metrics.rounds(records),
            "nodes": metrics.nodes(records, lambda ids: decode(tuple(ids))),
            "phases": [row for folder in a.timeline for row in metrics.phases(folder, lambda ids: decode(tuple(ids)))],
            "costs": metrics.costs(a.costs),
            "drafter": metrics.drafter(a.drafter),
            "perplexity": [files.read_json(path) for path in a.perplexity],
        }
        rows["summary"] = metrics.summary(rows["runs"])
        for name, content in rows.items():
            write_table(a.out / f"{name}.parquet", metrics.table(name, content))
        files.write_json(a.out / "metrics.json", metrics.headline(rows["runs"], rows["perplexity"], machine))


if __name__ == "__main__":
    main()
