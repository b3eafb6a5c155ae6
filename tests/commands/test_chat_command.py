"""`dynatree chat`: answers are those of `generate` to the whole conversation, and an interrupt ends an answer alone."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dynatree
from dynatree import DynaTree, files
from dynatree.commands import chat, cli
from dynatree.data import model_sources

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
ASKED = ("chat", "--target", "target", "--threads", "1", "--dtype", "float64", "--max-new-tokens", "12")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target that has a chat template, and one, `mute`, that has none."""
    folder = tmp_path_factory.mktemp("chat")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    source = {"kind": "random", "architecture": "llama", "configuration": {**shape, "max_position_embeddings": 512}}
    for name in ("mute", "target"):
        model_sources.build(model_sources.parse(source), folder / name, folder, seed=1)
    config = folder / "target" / "tokenizer_config.json"
    files.write_json(config, files.read_json(config) | {"chat_template": TEMPLATE})
    return folder


pytestmark = pytest.mark.usefixtures("at_home")


def talk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: list[str], *more: str
) -> tuple[int, list[str], list[str]]:
    """Exit status, lines of standard output and of standard error, of a conversation of these lines in a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    status = 0
    try:
        cli.main([*ASKED, *more])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    out, err = capsys.readouterr()
    return status, out.splitlines(), [line for line in err.splitlines() if not line.startswith("not calibrated")]


@pytest.mark.parametrize("method", ["dynatree", "autoregressive", "transformers"])
def test_five_turns_are_what_generate_gives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    """Guards the history, the reuse of keys and values, and special tokens that leak into messages."""
    said = ["hello", "what is a tree?", "hello", "and a leaf?", "hello hello hello"]
    status, out, err = talk(monkeypatch, capsys, ["", *said, "/exit", "unheard"], "--method", method, "--system", "be")
    messages = [{"role": "system", "content": "be"}]
    tree = DynaTree.from_pretrained("target", dtype="float64", method="autoregressive")
    assert tree.tokenizer is not None
    answers = []
    for text in said:
        messages.append({"role": "user", "content": text})
        found = tree.generate(messages, max_new_tokens=12)
        answers.append(tree.tokenizer.decode(found.tokens, skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answers[-1]})
    assert status == 0 and "\n".join(out) == "\n".join("\n".join(answers).splitlines())
    assert err == ["(cut at its limit; --max-new-tokens raises it)"] * 5


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards each command, and that what is wrong is told and does not end the conversation."""
    lines = ["/stats", "/magic", "/tree 1 2", "/", "/help", "hello", "/stats", "/tree", "/tree 0", "/tree x"]
    status, out, err = talk(monkeypatch, capsys, [*lines, "/tree 99", "hello", "/stats", "/reset", "/tree"])
    shown = "\n".join(out)
    assert status == 0 and "/reset         begin anew" in shown
    assert len(re.findall(r"last answer: 12 tokens in \d+\.\d\d s", shown)) == 2
    assert "1 answer so far: 12 tokens" in shown and "2 answers so far: 24 tokens" in shown
    first, second = re.findall(r"its prompt: (\d+) tokens, of which (\d+) were forwarded for it", shown)
    # A random model's bytes are no text, so that its answers do not come back as the tokens that they were.
    assert first[0] == first[1] and int(second[1]) == int(second[0]) - int(first[0]) + 1
    assert shown.count("attention mask: ") == 2 and "DynaTree, round 0" in shown
    complaints = [line for line in err if line.startswith("error: ")]
    known = "commands are /stats, /tree, /reset, /help and /exit"
    assert complaints[0] == "error: there is no answer yet" == complaints[-1]
    assert complaints[1].startswith(f"error: /magic: {known}") and complaints[2].startswith(
        f"error: /tree 1 2: {known}"
    )
    assert complaints[3].startswith(f"error: /: {known}")
    assert complaints[4:6] == [
        "error: /tree x: write a round's number, counted from 0",
        complaints[5],
    ] and complaints[5].startswith("error: round: no 99")


def test_a_full_context_is_told_and_reset_makes_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a conversation that ends with an error from deep in the model."""
    limit = int(files.read_json(Path("target") / "config.json")["max_position_embeddings"])
    status, out, err = talk(monkeypatch, capsys, ["x" * limit, "hello", "y" * (limit - 40), "/reset", "hello"])
    full = [line for line in err if "tokens of conversation fill the model's context" in line]
    assert status == 0 and len(full) == 2 and full[0].endswith("; reset begins anew")
    half = len(out) // 2
    assert half and out[:half] == out[half:]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--target", "mute"), "chat messages need a tokenizer with a chat template"),
        (("--method", "magic"), "--method: no 'magic'; choose one of autoregressive"),
        (("--max-new-tokens", "0"), "--max-new-tokens: 0; give at least 1"),
        (("--repetition-penalty", "0"), "--repetition-penalty: Input should be greater than 0"),
        (("--set", "depth=-1"), "depth: "),
        (("--prompt", "hello"), "unrecognized arguments: --prompt hello"),
    ],
)
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], complaint: str
) -> None:
    """Guards against a conversation that begins, and cannot go on."""
    status, out, err = talk(monkeypatch, capsys, ["hello"], *more)
    assert (status, out, len(err)) == (2, [], 1) and complaint in err[0]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as at a terminal: what is started in the background ignores it, and so does what that starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_an_answer_and_not_the_program(home: Path) -> None:
    """Guards Ctrl-C on a terminal: within an answer, and at the prompt, where it takes the line back."""
    controller, terminal = pty.openpty()
    root = str(Path(dynatree.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "dynatree.commands.cli", *ASKED[:-1], "400", "--method", "autoregressive"]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=home, env=environment, start_new_session=True
    )
    os.close(terminal)
    seen = ""

    def until(pattern: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while not re.search(pattern, seen):
            readable, _, _ = select.select([controller], [], [], max(0, deadline - time.monotonic()))
            if not readable or process.poll() is not None:
                pytest.fail(f"{pattern} never came: {seen!r}")
            seen += os.read(controller, 4096).decode(errors="replace")

    try:
        until("> $")
        os.write(controller, b"half a line")
        until("half a line")
        time.sleep(0.5)  # a signal between two letters is only seen with the next
        process.send_signal(signal.SIGINT)
        seen = ""
        until("> $")
        os.write(controller, b"hello\n")
        until("hello\r\n(?s:.)+")
        process.send_signal(signal.SIGINT)
        until("hello\r\n(?s:.)*\n> $")
        os.write(controller, b"/stats\n")
        until(r"1 answer so far: \d+ tokens(?s:.)*\n> $")
        time.sleep(0.5)  # Ctrl-D is the line editor's once it reads
        os.write(controller, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    tokens = int(re.findall(r"1 answer so far: (\d+) tokens", seen)[0])
    assert "(stopped)" in seen and 0 < tokens < 400


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_is_raised() -> None:
    """Guards a way out of a long prefill, which no commit ends."""
    with chat._interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)
        pytest.fail("the second was only noted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
