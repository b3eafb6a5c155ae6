"""Local text files as documents: a file, or each `*.txt` of a folder, one document a file."""

from collections.abc import Callable, Iterator
from pathlib import Path

from dynatree.config import Knobs
from dynatree.data import cleaning
from dynatree.data.documents import Document, decode, files_of
from dynatree.errors import UserError


class Parameters(Knobs):
    """`path`: a text file, or a folder of `*.txt`."""

    path: str  # a file, or a folder of *.txt


def documents(source: Parameters, cache: Path) -> Iterator[Document]:
    """One document a file; a Project Gutenberg licence is stripped if there is one. `cache` is not used.

    Raises UserError for a missing path, an empty file and one that is not UTF-8 text.
    """
    for file in files_of(source.path, ".txt"):
        text = decode(file.read_bytes(), file)
        if cleaning.mentions_gutenberg(text):
            text = cleaning.strip_book(text)
        if not text.strip():
            raise UserError(f"{file}: nothing is left of the text without licence and front matter")
        yield Document(file.stem, file.stem.replace("_", " "), text)


def token_ids(path: Path, encode: Callable[[str], list[int]]) -> list[int]:
    """All documents of a file or folder, tokenised, one behind the other."""
    return [token for document in documents(Parameters(path=str(path)), Path()) for token in encode(document.text)]
