"""What a drill did, as a page of docs/drills: commands with the lines of their output that matter."""

import re
import shlex
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.workflow.world import BIN, ENVIRONMENT, ROOT, World

PAGES = ROOT / "docs/drills"
STEPS = r"steps \(100%\) done|Nothing to be done"


class Transcript:
    """Runs commands in a world and keeps them; `write` makes the page."""

    def __init__(self, world: World, title: str, about: str):
        self.world = world
        self._lines = [f"# {title}", "", about, ""]

    def say(self, text: str) -> None:
        """A sentence between commands."""
        self._lines += [text, ""]

    def run(self, *command: Any, keep: str = "", ok: bool = True, cwd: Path | None = None) -> str:
        """Run and keep the command with the lines of its output that match `keep`; returns all of the output."""
        output = self.world.run(*command, ok=ok, cwd=cwd)
        self.note(shown(command), output, keep)
        return output

    def note(self, command: str, output: str, keep: str) -> None:
        """Keep a command that was run elsewhere."""
        # Cleaned first: a folder's name is not to be taken for what was said.
        lines = map(self._cleaned, output.splitlines() if keep else ())
        told = dict.fromkeys(line for line in lines if re.search(keep, line))
        self._lines += ["```text", f"$ {self._cleaned(command)}", *told, "```", ""]

    def _cleaned(self, line: str) -> str:
        """Without the paths of this run."""
        for path, shown_as in (
            (self.world.folder, "."),
            (f"{self.world.folder.parent}/", "../"),
            (f"{BIN}/", ""),
            (str(BIN), ".venv/bin"),
        ):
            line = line.replace(str(path), shown_as)
        return line.rstrip()

    def write(self, name: str) -> None:
        """docs/drills/<name>.md."""
        PAGES.mkdir(parents=True, exist_ok=True)
        (PAGES / f"{name}.md").write_text("\n".join(self._lines).rstrip() + "\n", encoding="utf-8")


def shown(command: tuple[Any, ...]) -> str:
    """A command as it would be typed, without this environment's paths."""
    words = [str(part) for part in command]
    return shlex.join(word for word in words if not word.startswith(("--old-file=", "VENV=")))


def make(*targets: str) -> list[str]:
    """`make` with this Python's environment."""
    venv = BIN.parent
    return ["make", f"--old-file={venv}/.ready", f"VENV={venv}", *targets]


def finished(folder: Path, title: str, about: str) -> tuple[World, Transcript]:
    """A finished checkout, handed over from Snakemake to DVC, and the page that it is told on."""
    world = World(folder)
    world.make()
    page = Transcript(world, title, about)
    page.run(*make("all"), keep=STEPS)
    page.run("dvc", "commit", "--force", "--quiet")
    return world, page


def commit(page: Transcript) -> None:
    """Commit what stands in the page's world."""
    page.run("git", "add", "-A")
    page.run("git", "commit", "-qm", "a finished run")


class Running:
    """A command in a session of its own, whose whole family can be killed."""

    def __init__(self, world: World, *command: str):
        self._folder = world.folder
        self._log = world.folder.parent / f"output-{time.monotonic_ns()}.txt"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=world.folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def output(self) -> str:
        """So far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern: str, seconds: float = 300) -> None:
        """Until the output matches. Fails if the command ends before, or takes too long."""
        until = time.monotonic() + seconds
        while not re.search(pattern, self.output, re.M):
            assert self.process.poll() is None, f"{pattern} never came:\n{self.output[-2000:]}"
            assert time.monotonic() < until, f"{pattern} did not come in {seconds} s"
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 to all that runs in this world, again until nothing does: a job may be starting in that moment."""
        while family := self._family():
            for process in family:
                with suppress(psutil.Error):
                    process.kill()
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()

    def _family(self) -> list[psutil.Process]:
        """Processes that work in this folder; a zombie has none."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.cwd() == str(self._folder):
                    found.append(process)
        return found
