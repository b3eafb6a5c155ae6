"""A conversation: its messages, and the keys and values of its text, which each turn reuses of the one before."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from dynatree.api.generation import Generation
from dynatree.api.streaming import Piece, Stream
from dynatree.api.text import encode
from dynatree.config import checked
from dynatree.errors import UserError
from dynatree.generation.options import GenerationOptions
from dynatree.generation.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from dynatree.api.dyna_tree import DynaTree


class Chat:
    """What `DynaTree.chat` gives. `messages`: all so far; `reply`: the last answer, `reused`: tokens of the prompt that
    it came after which were not forwarded again.

    Raises UserError for a tokenizer without a chat template.
    """

    def __init__(self, tree: "DynaTree", system: str | None = None):
        self._tree, self._system = tree, system
        self.reset()
        encode([*self.messages, _message("user", "")], tree.tokenizer)

    def reset(self) -> None:
        """Begin anew, with the system message alone."""
        self.messages = [] if self._system is None else [_message("system", self._system)]
        self.reply: Generation | None = None
        self.reused = 0
        self._kept = PrefixCache()

    def say(self, text: str, max_new_tokens: int = 512, **options: Any) -> Generator[Piece]:
        """The pieces of the answer, which becomes a message when they end, or are closed, and not where they fail, nor
        where the conversation has begun anew, or gone on, meanwhile.

        `max_new_tokens` is cut to the room that the model's context has left; `options` as for `generate`. Raises
        UserError where it has none.
        """
        asked = [*self.messages, _message("user", text)]
        wanted = checked("say", lambda count: GenerationOptions(max_new_tokens=count), max_new_tokens).max_new_tokens
        limit, length = self._tree.context_limit, len(encode(asked, self._tree.tokenizer))
        room = wanted if limit is None else min(wanted, limit - length)
        if room < 1:
            raise UserError(
                f"chat: {length} tokens of conversation fill the model's context of {limit}; reset begins anew"
            )
        stream = self._tree.stream(asked, room, kept=self._kept, skip_special_tokens=True, **options)
        return self._answer(asked, stream, self.messages)

    def _answer(self, asked: list[dict[str, str]], stream: Stream, before: list[dict[str, str]]) -> Generator[Piece]:
        failed = False
        try:
            yield from stream
        except Exception:
            failed = True
            raise
        finally:
            stream.close()
            # An answer that failed, or was given up before its first token, leaves the question out, too.
            if stream.generation.tokens and not failed and self.messages is before:
                self.reply, self.reused = stream.generation, self._kept.reused
                self.messages = [*asked, _message("assistant", self.reply.text or "")]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
