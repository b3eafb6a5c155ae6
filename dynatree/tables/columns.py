"""What the schemas of the tables are made of: a column with its meaning, kinds of values, columns that name a run."""

import pyarrow as pa

TEXT, COUNT, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()


def column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    """A column, with its meaning for docs/schema.md."""
    return pa.field(name, kind, metadata={"meaning": meaning})


METHOD_KEY = [
    column("experiment", TEXT, "`headline` for the main runs, or an experiment of params.yaml"),
    column("method", TEXT, "name of the method in params.yaml"),
    column("settings", TEXT, "the method's knobs, as in the run's folder name (D8_B3_tau0.03_N64)"),
    column("dataset", TEXT, "name of the data set in params.yaml"),
]
RUN_KEY = [
    *METHOD_KEY,
    column("prompt_id", TEXT, "prompt: data set, document, place of its first token in the document"),
    column("repeat", COUNT, "which repeat of the same prompt, from 0"),
]
