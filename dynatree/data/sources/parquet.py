"""Local Parquet files as documents: a document a row, or WikiText's layout of one line a row."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dynatree.config import Knobs
from dynatree.data.documents import Document, Layout, columns_exist, files_of, from_rows
from dynatree.errors import UserError, readable


class Parameters(Knobs):
    """`path`: a Parquet file or a folder of them; `document_heading`: see `documents.from_rows`."""

    path: str  # a file, or a folder of *.parquet
    text_column: str = "text"  # column that holds the text
    title_column: str | None = None  # column that holds titles; null: none
    layout: Layout = "rows"  # a document a row, or WikiText's line a row
    document_heading: str | None = None  # of wikitext: a regular expression; null: ` = Title = `


def documents(source: Parameters, cache: Path) -> Iterator[Document]:
    """The documents of the file or, file after file, of the folder. `cache` is not used.

    Raises UserError for a missing path, a file that is not Parquet or has no rows or lacks a column.
    """
    for file in files_of(source.path, ".parquet"):
        with readable(f"Parquet file {file}"):
            opened = pq.ParquetFile(file)
        with opened:
            columns_exist(opened.schema_arrow.names, [source.text_column, source.title_column], str(file))
            for column in filter(None, (source.text_column, source.title_column)):
                kind = opened.schema_arrow.field(column).type
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    raise UserError(f"{file}: column {column!r} holds {kind}; expected string")
            if opened.metadata.num_rows == 0:
                raise UserError(f"{file}: no rows")
            yield from from_rows(_rows(opened, source, file), file.stem, source.layout, source.document_heading)


def _rows(opened: pq.ParquetFile, source: Parameters, file: Path) -> Iterator[tuple[str, str | None]]:
    columns = [source.text_column] + ([source.title_column] if source.title_column else [])
    batches = opened.iter_batches(columns=columns)
    while True:
        with readable(f"Parquet file {file}"):
            batch = next(batches, None)
        if batch is None:
            return
        for row in batch.to_pylist():
            yield row[source.text_column], row[source.title_column] if source.title_column else None
