"""Many files as one compressed file: the same files give the same bytes, whoever packs them and when."""

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from dynatree.errors import UserError
from dynatree.files import replacing

# In a published folder: what is not read as it lies there.
RECORDS = "records.tar.xz"


def pack(path: Path, files: Mapping[str, Path]) -> None:
    """Write a tar archive, compressed by LZMA, of `files`: where each lies, by its name within."""
    with replacing(path) as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
        for name in sorted(files):
            # Size and content alone: no owner, no mode, no time.
            member = tarfile.TarInfo(name)
            member.size = files[name].stat().st_size
            with files[name].open("rb") as content:
                archive.addfile(member, content)


def unfold(published: Path, out: Path) -> None:
    """Lay out below `out`, as in a checkout, the files of a published folder and those of its archive.

    Raises UserError if there is no archive; refuses members that would lie outside `out`.
    """
    if not (published / RECORDS).is_file():
        raise UserError(f"{published}: no published folder, as it has no {RECORDS}")
    shutil.copytree(published, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECORDS))
    with tarfile.open(published / RECORDS, "r:xz") as archive:
        archive.extractall(out, filter="data")
