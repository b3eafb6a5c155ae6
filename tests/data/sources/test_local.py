"""Local text and Parquet files, and the hub when it is not there."""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynatree.data.sources import hub, parquet, text
from dynatree.errors import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"
WIKITEXT, BOOK = SHARED / "wikitext-2-raw-v1" / "validation.parquet", SHARED / "pg19" / "book-excerpt.txt"


def read(module, **keys):
    """All documents of a source."""
    return list(module.documents(module.Parameters(**keys), Path("unused")))


def test_a_file_and_a_folder_of_text(tmp_path):
    """Guards against one document a paragraph, carriage returns and byte order marks."""
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    (tmp_path / "a.txt").write_text("three", encoding="utf-8")
    assert [(d.id, d.text) for d in read(text, path=str(tmp_path))] == [("a", "three"), ("b", "one\n\ntwo\n")]
    assert [d.id for d in read(text, path=str(tmp_path / "b.txt"))] == ["b"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b" \n", "empty"), (b"\x00\x01", "binary"), (b"caf\xe9", "not UTF-8")]
)
def test_text_that_is_none_is_an_error(tmp_path, content, message):
    """Guards against silent replacement characters and empty documents."""
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(text, path=str(tmp_path))


@pytest.mark.parametrize("module", [text, parquet])
def test_a_missing_path_or_an_empty_folder_is_an_error(tmp_path, module):
    """Guards against an empty data set."""
    with pytest.raises(UserError, match="no such file or folder"):
        read(module, path=str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"no \*\."):
        read(module, path=str(tmp_path))


def write(path, **columns):
    """A Parquet file of these columns."""
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_rows_are_documents_with_titles(tmp_path):
    """Guards against blank rows and lost titles."""
    path = write(tmp_path / "a.parquet", body=["one", " ", "two"], name=["x", "y", None])
    documents = read(parquet, path=path, text_column="body", title_column="name")
    assert [(d.id, d.title, d.text) for d in documents] == [("a-0", "x", "one"), ("a-2", "a 2", "two")]


def test_wikitext_lines_are_joined_into_articles(tmp_path):
    """Guards against headings in the body, lines parted, and an equation taken for a title."""
    rows = [
        "",
        " = First = \n",
        "",
        " One . \n",
        " = x = \n",
        " = = Part = = \n",
        " Two . \n",
        "",
        " = Second = \n",
        " Three . \n",
    ]
    documents = read(parquet, path=write(tmp_path / "w.parquet", text=rows), layout="wikitext")
    assert [(d.title, d.text) for d in documents] == [("First", " One . \n = x = \n Two . "), ("Second", " Three . ")]


def test_parquet_errors_name_what_is_there(tmp_path):
    """Guards against tracebacks for a wrong column, a column of numbers, another format and no rows."""
    with pytest.raises(UserError, match="no column 'text'; choose one of number, words"):
        read(parquet, path=write(tmp_path / "a.parquet", number=[1], words=["a"]))
    with pytest.raises(UserError, match="expected string"):
        read(parquet, path=str(tmp_path / "a.parquet"), text_column="number")
    with pytest.raises(UserError, match="no rows"):
        read(parquet, path=write(tmp_path / "b.parquet", text=pa.array([], pa.string())))
    (tmp_path / "c.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"Parquet file .*c\.parquet cannot be read"):
        read(parquet, path=str(tmp_path / "c.parquet"))


def test_an_unreachable_hub_is_an_error_soon(monkeypatch, tmp_path):
    """Guards against minutes of retries, and against an error that does not say how to go on."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits between retries"))
    with pytest.raises(UserError, match=r"nobody/nothing.*not reachable.*`parquet`.*`text`"):
        read(hub, repository="nobody/nothing", split="test")


@pytest.mark.skipif(not (WIKITEXT.is_file() and BOOK.is_file()), reason="the shared texts are not here")
def test_real_texts_are_read():
    """Guards against rules that hold for made-up texts only."""
    articles = read(parquet, path=str(WIKITEXT), layout="wikitext")
    assert len(articles) == 60
    assert articles[0].title == "Homarus gammarus"
    assert articles[0].text.lstrip().startswith("Homarus gammarus , known as")
    assert " = = " not in articles[0].text
    (book,) = read(text, path=str(BOOK))
    assert "Gutenberg" not in book.text
    assert len(book.text) > 80_000
    assert "If James M. Goodhue" in book.text[:2000]
