"""A throw-away checkout with the tiny parameters, in which both workflow tools really run."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from dynatree.code_checksums import KEPT
from dynatree.study import grid, params, preflight
from tests.workflow import forked

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    # Nor what has all modules compiled at each start, half of the time of most commands.
    **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "OMP", "PYTHONDONTWRITEBYTECODE"))},
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "OMP_WAIT_POLICY": "passive",  # a thread that spins takes the core from the other worlds' jobs
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


class World:
    """A folder with a copy of the checkout; `snakemake` and `dvc` say which jobs they ran."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None):
        self.folder, self.environment = folder, ENVIRONMENT | (environment or {})

    def copy(self) -> None:
        """The checkout's files, with the parameters of `make quick`: every experiment and figure, two data sets."""
        self.run("python", ROOT / "workflow/scripts/sandbox.py", "--out", self.folder, cwd=ROOT)
        # What is known of code, by its content.
        if (ROOT / KEPT).is_dir():
            shutil.copytree(ROOT / KEPT, self.folder / KEPT, dirs_exist_ok=True)

    def shrink(self) -> None:
        """Fewer experiments and figures: enough to tell what a change recomputes."""
        experiments = {name: self.params["experiments"][name] for name in ("tree_shape", "prompt_length", "batch_size")}
        experiments["prompt_length"]["methods"] = ["autoregressive", "prompt_lookup", "dynatree"]
        experiments["prompt_length"]["prompt_tokens"] = [12]
        figures = ["datasets", "tree_shape", "memory"]
        # In a type that torch computes: hundreds of jobs would each make a graph, and say no more of the job graph.
        kept = {"experiments": experiments, "figures": figures, "dtype": "float64"}
        self.edit(datasets=["tiny_articles"], tuning=["tiny_articles"], threads=None, **kept)
        sizes = {name: self.params["scales"]["tiny"]["experiments"][name] for name in ("default", "batch_size")}
        self.edit(scales={"tiny": {**self.params["scales"]["tiny"], "experiments": sizes}})

    def make(self) -> None:
        """A small copy with DVC's view of it, under version control."""
        self.copy()
        self.shrink()
        self.stages()
        (self.folder / "dvc.lock").unlink(missing_ok=True)
        for command in (["git", "init", "-q"], ["git", "add", "-A"], ["git", "commit", "-qm", "world"]):
            self.run(*command)

    def run(self, *command: Any, cwd: Path | None = None, ok: bool = True) -> str:
        """Standard output and error together; with a timing lock of the world's own, so that worlds do not wait."""
        temporary = self.folder / ".cache/tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        words, folder = [str(part) for part in command], cwd or self.folder
        environment, output = self.environment | {"TMPDIR": str(temporary)}, temporary / f"said-{uuid4().hex}"
        if words[0] in forked.PROGRAMS:
            status = forked.run(words, folder, environment, output)
        else:
            with output.open("wb") as file:
                done = subprocess.run(words, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
            status = done.returncode
        text = output.read_text(encoding="utf-8")
        output.unlink()
        assert not ok or status == 0, text[-6000:]
        return text

    @property
    def params(self) -> dict[str, Any]:
        """The plain values of params.yaml."""
        values: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text())
        return values

    def edit(self, **changes: Any) -> None:
        """Change params.yaml: keys with `__` for a level (methods__dynatree__threshold=0.1)."""
        path, values = self.folder / "params.yaml", self.params
        for key, value in changes.items():
            *sections, last = key.split("__")
            section = values
            for name in sections:
                section = section[name]
            section[last] = value
        path.write_text(yaml.safe_dump(values, sort_keys=False))

    def check(self) -> None:
        """What the tools ask of new parameters, asked here, where torch is loaded: they find the answer."""
        preflight.check_once(params.read(self.folder / "params.yaml"), self.folder / ".cache/checked")

    def snakemake(self, *options: str, target: str = "all") -> Counter[str]:
        """`snakemake --cores 1 all`: the jobs that ran, as `rule:wildcards`."""
        self.check()
        return jobs(self.run("snakemake", "--cores", 1, *options, target))

    @contextmanager
    def edited(self, **changes: Any) -> Iterator[None]:
        """Within, params.yaml is as after such an `edit`; afterwards it and dvc.yaml are as before."""
        paths = [self.folder / name for name in ("params.yaml", "dvc.yaml")]
        before = [path.read_text() for path in paths]
        try:
            self.edit(**changes)
            yield
        finally:
            for path, text in zip(paths, before, strict=True):
                path.write_text(text)

    def stages(self, *options: str, ok: bool = True) -> str:
        """`make dvc.yaml`, in a Python that is there already."""
        self.check()
        return self.run("python", "workflow/scripts/stages.py", *options, ok=ok)

    def touch(self) -> None:
        """`make touch`, with this Python's environment, whatever its age."""
        venv = BIN.parent
        self.run("make", f"--old-file={venv}/.ready", f"VENV={venv}", "touch")

    def repro(self, *options: str) -> dict[str, set[str]]:
        """`dvc repro`: stages that ran, but for the check of dvc.yaml, and stages restored from the run cache.

        With `--dry` those that would run by what has changed already, not those after them.
        """
        self.check()
        text = self.run("dvc", "repro", *options)
        return {
            "ran": set(re.findall(r"^Running stage '([^']+)'", text, re.M)) - {"dvc_yaml"},
            "restored": set(re.findall(r"^Stage '([^']+)' is cached", text, re.M)),
        }


def jobs(text: str) -> Counter[str]:
    """Jobs in Snakemake's output: rule name and wildcard values, joined by `:` and `/`."""
    found: Counter[str] = Counter()
    blocks = re.split(r"^(?:local)?rule (\w+):$", text, flags=re.M)
    for rule, block in zip(blocks[1::2], blocks[2::2], strict=True):
        body = block.split("\n\n")[0]
        wildcards = re.search(r"^    wildcards: (.*)$", body, re.M)
        values = [part.split("=", 1)[1] for part in wildcards[1].split(", ")] if wildcards else []
        found[":".join([rule, "/".join(values)]) if values else rule] += 1
    found.pop("all", None)
    return found


def runs(world: World) -> dict[str, grid.Run]:
    """The generation runs of this world, by folder."""
    return grid.expand(params.read(world.folder / "params.yaml"))
