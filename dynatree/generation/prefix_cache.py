"""Keys and values kept from one generation for the next whose text begins alike: the turns of a conversation."""

from collections.abc import Sequence
from itertools import takewhile

from dynatree.engine.backend import Cache
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.request import Request


class PrefixCache:
    """What the last generation left behind. The decoder that it is given to reads it and fills it; all that it is given
    to have one target.

    It is of one generation at a time: a later one takes it, and an earlier one that has not ended cannot go on.
    """

    def __init__(self) -> None:
        self.last: Request | None = None
        self.reused = 0  # tokens of the last prompt that were not forwarded again
        self._target: LanguageModel | None = None

    def begin(self, prompt: Sequence[int], target: LanguageModel) -> Cache | None:
        """The cache of the last generation, cropped to what `prompt` shares with it; None where there is none.

        The prompt's last token is never among it: its logits are wanted. Raises UserError where it is not of `target`.
        """
        if self.last is not None and self._target is not None and self._target is not target:
            raise UserError(
                f"kept: its keys and values are of another model ({self._target.name}, here {target.name}); "
                "make a PrefixCache for each"
            )
        self.reused, self._target = 0, target
        last, self.last = self.last, None
        if last is None:
            return None
        pairs = zip(last.committed, prompt[:-1], strict=False)
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.reused = min(alike, last.cache.length)
        last.cache.crop(self.reused)
        return last.cache
