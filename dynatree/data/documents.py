"""A document, and the Parquet tables that hold documents and their tokens. Knows no source, no tokenizer, no prompt."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dynatree.errors import UserError, readable
from dynatree.files import replacing

Layout = Literal["rows", "wikitext"]

_HEADING = re.compile(r"\s*((?:= )+)(\S.*?\S|\S)((?: =)+)\s*")
_DOCUMENTS = pa.schema([("document_id", pa.string()), ("title", pa.string()), ("text", pa.string())])


@dataclass(frozen=True)
class Document:
    """A text with its identifier (unique in its source) and title; the title is not part of `text`."""

    id: str
    title: str
    text: str


def decode(data: bytes, name: str | Path) -> str:
    """`data` as UTF-8 text with line feeds only, byte order mark removed. Raises UserError for anything else."""
    if not data.strip():
        raise UserError(f"{name}: the file is empty; expected text")
    if b"\0" in data:
        raise UserError(f"{name}: binary data; expected UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start} is not UTF-8; expected UTF-8 text") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def files_of(path: str, suffix: str) -> list[Path]:
    """The file `path`, or the files `*suffix` of the folder `path`, sorted. Raises UserError if there is none."""
    place = Path(path)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{path}: no such file or folder; expected a file or a folder of *{suffix}")
    found = sorted(place.glob(f"*{suffix}"))
    if not found:
        raise UserError(f"{path}: no *{suffix} in this folder")
    return found


def from_rows(
    rows: Iterable[tuple[str, str | None]], name: str, layout: Layout, document_heading: str | None = None
) -> Iterator[Document]:
    """Documents of (text, title) rows, blank ones left out; identifiers are `<name>-<index>`.

    `rows`: one row a document. `wikitext`: one row a line, an article starts at a heading ` = Title = `;
    `document_heading` is a regular expression with one group, the title, that replaces this rule.
    Deeper headings are dropped, everything else is kept as it is.
    """
    if layout == "rows":
        for index, (text, title) in enumerate(rows):
            if text and text.strip():
                yield Document(f"{name}-{index}", title or f"{name} {index}", text)
        return
    rule = re.compile(document_heading) if document_heading else None
    lines: list[str] = []
    title, count, blank_before = "", 0, True
    for text, _ in rows:
        text = text or ""
        heading = _HEADING.fullmatch(text)
        level = len(heading[1]) // 2 if heading and len(heading[1]) == len(heading[3]) else 0
        own = rule.fullmatch(text.strip()) if rule else None
        # A body line that is an equation may look like a heading; headings stand after an empty row.
        starts = own is not None if rule else level == 1 and blank_before
        blank_before = not text.strip()
        if starts:
            if "".join(lines).strip():
                yield Document(f"{name}-{count}", title, "".join(lines).strip("\n"))
                count += 1
            title, lines = (own[1] if own else heading[2] if heading else "").strip(), []
        elif level < 2:
            lines.append(text if text.endswith("\n") else text + "\n")
    if "".join(lines).strip():
        yield Document(f"{name}-{count}", title, "".join(lines).strip("\n"))


def columns_exist(available: Iterable[str], wanted: Iterable[str | None], place: str) -> None:
    """Raise UserError, with the columns that exist, if a wanted one (None: not wanted) does not."""
    choices = list(available)
    for column in wanted:
        if column is not None and column not in choices:
            raise UserError(f"{place}: no column {column!r}; choose one of {', '.join(choices)}")


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write a table as Parquet, atomically; equal tables give equal bytes."""
    with replacing(path) as temporary:
        # The tables of a study are published: a fifth less for a few seconds.
        pq.write_table(table, temporary, compression="zstd", compression_level=19, store_schema=True)


def read_table(path: str | Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows of a Parquet file with the columns of `schema`. Raises UserError if it is missing or another table."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected a Parquet table of {', '.join(schema.names)}")
    with readable(f"Parquet file {path}"):
        table = pq.ParquetFile(path).read()
    columns_exist(table.column_names, schema.names, str(path))
    rows: list[dict[str, Any]] = table.select(schema.names).to_pylist()
    return rows


def write_documents(path: str | Path, documents: Iterable[Document]) -> None:
    """Write documents as a Parquet table (document_id, title, text), in the order given."""
    rows = [{"document_id": d.id, "title": d.title, "text": d.text} for d in documents]
    write_table(path, pa.Table.from_pylist(rows, schema=_DOCUMENTS))


def read_documents(path: str | Path) -> list[Document]:
    """The documents that `write_documents` wrote."""
    return [Document(row["document_id"], row["title"], row["text"]) for row in read_table(path, _DOCUMENTS)]
