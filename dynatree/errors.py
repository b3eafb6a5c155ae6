"""The one error that is the user's to mend; entry points print it as one line and exit with status 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: the message names the value received and what would have been accepted."""


@contextmanager
def reported() -> Iterator[None]:
    """Print a UserError as one line on standard error and exit with status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
