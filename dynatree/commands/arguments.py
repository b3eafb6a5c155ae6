"""What several commands check of their arguments before any work begins."""

import os
from collections.abc import Iterable
from pathlib import Path

from dynatree.errors import UserError


def check_texts(paths: Iterable[Path]) -> None:
    """Raise UserError for a --text that is not there, and for two of one name: results are told apart by it."""
    names: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"--text: no file or folder {str(path)!r}")
        other = names.setdefault(path.stem, path)
        if other is not path:
            raise UserError(f"--text: {str(other)!r} and {str(path)!r} are both called {path.stem!r}; rename one")


def check_out(path: Path, folder: bool = False) -> None:
    """Raise UserError for an --out that could not be written, before the work for it begins."""
    if path.exists() and path.is_dir() != folder:
        raise UserError(f"--out {path}: it is {'no folder' if path.is_file() else 'a folder'}")
    home = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not (home.is_dir() or home == path) or not os.access(home, os.W_OK):
        raise UserError(f"--out {path}: {home} is no folder that can be written to")


def quieten() -> None:
    """No progress bars and warnings of transformers beside what a command prints. Imports transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
