"""The target's states along one text, as a drafter that reads them needs them. Knows no drafter and no tree."""

from torch import Tensor

from dynatree.engine.backend import NO_STATES


class ReadStates:
    """States [n, reads * width] of the positions from `first` to before `end`, of a text that goes on.

    `most`: of how many positions they are held at least, the last ones; None: of all.
    """

    def __init__(self, first: int = 0, most: int | None = None):
        self.first = self.end = first
        self._most = most
        self._rows = NO_STATES  # and room for more behind those that are held: a round adds a few

    def append(self, states: Tensor) -> None:
        """The states of the positions from `end` on."""
        if self._most is not None and len(states) > self._most:
            self.first = self.end = self.end + len(states) - self._most
            states = states[-self._most :]
        if self.end - self.first + len(states) > len(self._rows):
            self._make_room(states)
        place = self.end - self.first
        self._rows[place : place + len(states)] = states
        self.end += len(states)

    def since(self, position: int) -> Tensor:
        """The states from `position` on, which is one that is held, as long as none are added."""
        assert self.first <= position <= self.end, f"states of {self.first} to {self.end}, asked for from {position}"
        return self._rows[position - self.first : self.end - self.first]

    def crop(self, end: int) -> None:
        """Forget those of the positions from `end` on, which is one that is held, or the next."""
        assert self.first <= end <= self.end, f"states of {self.first} to {self.end}, cropped to {end}"
        self.end = end

    def _make_room(self, more: Tensor) -> None:
        """For `more` and as many as there are then, in a new place; of those that are held the last are moved there."""
        held = self.since(self.first if self._most is None else max(self.first, self.end - self._most))
        rows = more.new_empty(2 * (len(held) + len(more)), more.shape[1])
        if len(held):
            rows[: len(held)] = held
        self._rows, self.first = rows, self.end - len(held)
