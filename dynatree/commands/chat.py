"""`dynatree chat`: a conversation on the terminal."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from dynatree.commands import options, request
from dynatree.commands.generate import show
from dynatree.errors import UserError
from dynatree.study import params

if TYPE_CHECKING:
    from dynatree.api import Generation
    from dynatree.api.chat import Chat
    from dynatree.api.streaming import Piece

_COMMANDS = """\
/stats         tokens, rounds and speed of the last answer, and of the conversation
/tree [ROUND]  the tree that was verified in that round of the last answer (default: the one that accepted most);
               it needs the extra `workflow` (pip install '.[workflow]' in the checkout)
/reset         begin anew
/help          these lines
/exit          leave (Ctrl-D does, too); Ctrl-C ends an answer"""

_DESCRIPTION = f"""\
Talk with an instruction model: each line is a message, and the answer streams as it is committed, accepted draft tokens
in green on a terminal. The history is kept, and so are the keys and values of its text, so that each turn forwards
what is new alone. Decoding is greedy, or drawn with --temperature, by any method of params.yaml. From a pipe, each
line is a message, too.
{request.COSTS}
commands:
{_COMMANDS}

examples:
  dynatree chat --target smollm2 --drafter smollm2-drafter --dtype int4
  dynatree chat --target ./my-model --system "Answer in one sentence." --repetition-penalty 1.1
"""


def register(add: Callable[..., argparse.ArgumentParser], find_model: request.FindModel) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add("chat", help="talk with a model", description=_DESCRIPTION)
    request.models(parser)
    parser.add_argument("--method", default="dynatree", metavar="NAME", help="of params.yaml (default: dynatree)")
    parser.add_argument("--system", metavar="TEXT", help="a first message that says how to answer")
    parser.add_argument(
        "--max-new-tokens",
        type=options.at_least_one,
        default=512,
        metavar="N",
        help="of an answer, which ends sooner where the model ends it (default: 512)",
    )
    request.processors(parser)
    request.knobs(parser)
    options.machine(parser)
    parser.set_defaults(
        run=lambda arguments: _run(arguments, find_model), prompt=None, prompt_file=None, prompt_ids=None
    )
    return parser


def _run(arguments: argparse.Namespace, find_model: request.FindModel) -> None:
    known = params.read()
    knobs = request.settings(request.method(arguments.method, known), arguments.set)
    asked = request.processed(arguments)
    system = None if arguments.system is None else request.checked_text(arguments.system, "--system")
    tree, _ = request.load(arguments, known, knobs, find_model)
    talk = _Talk(tree.chat(system), {"max_new_tokens": arguments.max_new_tokens, **asked})
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401 - editing and history for input()

        print(f"{tree}; /help lists the commands", file=sys.stderr)
    heard = True
    while heard:
        try:
            line = input("> " if terminal else "").strip()
            heard = not line or talk.hear(line)
        except EOFError:
            heard = False
            if terminal:
                print()
        except KeyboardInterrupt:
            # At the prompt it takes back the line, as in a shell.
            if not terminal:
                raise
            print()


class _Talk:
    """The conversation, and what its answers took."""

    def __init__(self, chat: "Chat", asked: dict[str, Any]):
        self._chat, self._asked = chat, asked
        self._replies: list[Generation] = []

    def hear(self, line: str) -> bool:
        """Answer a message, or do what a command asks for; whether to go on. What is wrong with it is told."""
        try:
            if not line.startswith("/"):
                self._answer(line)
                return True
            name, *rest = line[1:].split() or [""]
            commands: dict[str, Callable[..., None]] = {
                "stats": self._stats,
                "tree": self._tree,
                "reset": self._reset,
                "help": lambda: print(_COMMANDS),
            }
            if line == "/exit":
                return False
            if name not in commands or len(rest) > (name == "tree"):
                raise UserError(f"{line}: commands are /{', /'.join(commands)} and /exit; /help explains them")
            commands[name](*rest)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        return True

    def _answer(self, text: str) -> None:
        before = self._chat.reply
        pieces = self._chat.say(request.checked_text(text, "message"), **self._asked)
        with _interruptible() as interrupted:
            show(_until(pieces, interrupted))
            pieces.close()
            if interrupted():
                print("(stopped)", file=sys.stderr)
        if self._chat.reply is not before and self._chat.reply is not None:
            self._replies.append(self._chat.reply)
            if self._chat.reply.finish_reason == "length":
                print("(cut at its limit; --max-new-tokens raises it)", file=sys.stderr)

    def _stats(self) -> None:
        last = self._last()
        prompt, fresh = last.prompt_tokens, last.prompt_tokens - self._chat.reused
        print(f"last answer: {_speed([last])}; first token after {1000 * last.trace.commits[0]:.0f} ms")
        print(f"its prompt: {prompt} tokens, of which {fresh} were forwarded for it")
        answers = f"{len(self._replies)} answer{'' if len(self._replies) == 1 else 's'}"
        print(f"{answers} so far: {_speed(self._replies)}")

    def _tree(self, number: str | None = None) -> None:
        from dynatree.commands.tree import shown

        last = self._last()
        if number is not None and not number.isdecimal():
            raise UserError(f"/tree {number}: write a round's number, counted from 0")
        accepted = [r.accepted for r in last.trace.rounds]
        best = accepted.index(max(accepted)) if accepted else 0
        print(shown(last, best if number is None else int(number))[1])

    def _reset(self) -> None:
        self._chat.reset()
        self._replies = []
        print("begun anew", file=sys.stderr)

    def _last(self) -> "Generation":
        if self._chat.reply is None:
            raise UserError("there is no answer yet")
        return self._chat.reply


def _speed(replies: "list[Generation]") -> str:
    """Tokens, seconds, rounds and accepted drafts of some answers together."""
    tokens, seconds = sum(len(r.tokens) for r in replies), sum(r.seconds for r in replies)
    rounds = [fact for reply in replies for fact in reply.trace.rounds]
    later = sum(len(fact.emitted) for fact in rounds)
    each = f" ({later / len(rounds):.1f} tokens per round)" if rounds else ""
    return (
        f"{tokens} tokens in {seconds:.2f} s ({tokens / seconds:.1f} tokens/s), {len(rounds)} rounds{each}, "
        f"{sum(fact.accepted for fact in rounds)} of {sum(fact.drafted for fact in rounds)} drafted accepted"
    )


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C is noted, and the second is raised: an answer ends between two commits."""
    noted = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    usual = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    except KeyboardInterrupt:
        print()
    finally:
        signal.signal(signal.SIGINT, usual)


def _until(pieces: "Iterator[Piece]", interrupted: Callable[[], bool]) -> "Iterator[Piece]":
    for piece in pieces:
        yield piece
        if interrupted():
            return
