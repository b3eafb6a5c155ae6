"""How far a measurement is: lines of a log, or a bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

# Told what has just been done.
Tell = Callable[[str], None]


def lines(said: str) -> None:
    """A line on standard error."""
    print(f"calibrate: {said}", file=sys.stderr, flush=True)


@contextmanager
def bar(what: str, steps: int) -> Iterator[Tell]:
    """A bar on standard error, which so many calls fill."""
    with tqdm(total=steps, desc=what, bar_format="{percentage:3.0f}%|{bar:30}| {desc}") as shown:

        def tell(said: str) -> None:
            shown.set_description_str(f"{what}: {said}", refresh=False)
            shown.update()

        yield tell
