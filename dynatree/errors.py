"""The one error that is the user's to mend; entry points print it as one line and exit with status 2."""

import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 300  # letters of what a library says about a file


class UserError(ValueError):
    """Bad input: the message, one line, names the value received and what would have been accepted."""

    def __init__(self, message: str):
        # A name that is wrong may hold a line break.
        super().__init__(" ".join(message.splitlines()))


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's text, for one-line messages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads the user's file into a UserError that begins with `what`.

    Only around such a call: transformers, tokenizers and json answer damaged files with exceptions of every kind.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = textwrap.shorten(str(error), _LONGEST, placeholder=" …")
        raise UserError(f"{what} cannot be read: {type(error).__name__}: {said}") from error


@contextmanager
def reported() -> Iterator[None]:
    """Print a UserError, or what the file system refused, as one line on standard error and exit with status 2."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads the output has seen enough; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
