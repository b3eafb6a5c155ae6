"""The target's states along one text, as a drafter that reads them needs them. Knows no drafter and no tree."""

import torch
from torch import Tensor


class ReadStates:
    """States [n, reads * width] of the positions from `first` on, each behind the one before, of a text that goes on.

    `most`: of how many positions they are held at least, the last ones; None: of all.
    """

    def __init__(self, first: int = 0, most: int | None = None):
        self.first = self.end = first
        self._most = most
        self._pieces: list[Tensor] = []

    def append(self, states: Tensor) -> None:
        """The states of the positions behind those that are held."""
        self._pieces.append(states)
        self.end += len(states)
        # Now and then, since a round adds a few.
        if self._most is not None and self.end - self.first > 2 * self._most:
            # A copy: a view would hold those before it.
            self._hold(self.since(self.end - self._most).clone(), self.end - self._most)

    def since(self, position: int) -> Tensor:
        """The states from `position` on, which is one that is held."""
        assert self.first <= position <= self.end, f"states of {self.first} to {self.end}, asked for from {position}"
        if len(self._pieces) != 1:
            self._pieces = [torch.cat(self._pieces)]
        return self._pieces[0][position - self.first :]

    def crop(self, end: int) -> None:
        """Forget those of the positions from `end` on, which is one that is held, or the next."""
        self._hold(self.since(self.first)[: end - self.first], self.first)

    def _hold(self, states: Tensor, first: int) -> None:
        self._pieces, self.first, self.end = [states], first, first + len(states)
