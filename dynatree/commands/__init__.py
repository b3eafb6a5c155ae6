"""Commands of `dynatree` beside generation: each module adds itself to the parser with `register`."""

from collections.abc import Iterable
from pathlib import Path

from dynatree.errors import UserError


def check_texts(paths: Iterable[Path]) -> None:
    """Raise UserError for a --text that is not there."""
    for path in paths:
        if not path.exists():
            raise UserError(f"--text: no file or folder {str(path)!r}")


def quieten() -> None:
    """No progress bars and warnings of transformers beside what a command prints. Imports transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
