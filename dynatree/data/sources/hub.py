"""Data sets of the hub as documents, through `datasets`; what is in its cache is read without the hub."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from dynatree.config import Knobs
from dynatree.data.documents import Document, Layout, columns_exist, from_rows
from dynatree.data.hub import access


class Parameters(Knobs):
    """`repository` ("Salesforce/wikitext"), its `configuration` and `split`; see `documents.from_rows` for `layout`."""

    repository: str  # OWNER/NAME of the data set
    configuration: str | None = None  # name of its configuration; null: the only one
    split: str  # test, validation, ...
    text_column: str = "text"  # column that holds the text
    layout: Layout = "rows"  # a document a row, or WikiText's line a row
    title_column: str | None = None  # column that holds titles; null: none
    max_documents: int | None = Field(default=None, ge=1)  # stop after so many; null: all


def documents(source: Parameters, cache: Path) -> Iterator[Document]:
    """At most `max_documents` documents of the data set. `datasets` keeps its own cache; `cache` is not used.

    Raises UserError if the hub is not reachable and the data set not cached, or it has no such split or column.
    """
    dataset = _load(source)
    columns_exist(dataset.column_names, [source.text_column, source.title_column], source.repository)
    rows = ((row[source.text_column], row[source.title_column] if source.title_column else None) for row in dataset)
    name = "-".join(filter(None, (source.repository.rpartition("/")[2], source.configuration, source.split)))
    yield from islice(from_rows(rows, name, source.layout), source.max_documents)


def _load(source: Parameters) -> Any:
    what = f"data set {source.repository!r} (configuration {source.configuration!r}, split {source.split!r})"
    local = f"a source of kind `parquet` (layout {source.layout!r}) or of kind `text`, with its `path`"
    with access(what, local):
        import datasets

        return datasets.load_dataset(source.repository, source.configuration, split=source.split, streaming=False)
