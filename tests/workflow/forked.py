"""Scripts of a job graph in forks of one Python that has torch imported: most of what a job on the tiny pair takes.

bash reads the file `shell`, where `python` is a function that lets the server run the script in the caller's place.
The paper's graph (test_paper.py) does without: there each script has a Python of its own.
"""

import importlib
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Nothing of this library: each world has its own.
LOADED = (
    "openvino",
    "altair",
    "pyarrow.parquet",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
)


@contextmanager
def forking(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A server in `folder`; yields what else the environment of a graph needs."""
    address, shell = folder / "socket", folder / "shell"
    ask = [sys.executable, "-I", "-S", __file__, "ask", str(address)]
    shell.write_text(f'python() {{ {shlex.join(ask)} "$@"; }}\n')
    # As Snakemake exports it under --cores 1: OpenMP reads it when torch is loaded.
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", str(address)], env=environment | {"OMP_NUM_THREADS": "1"}
    )
    try:
        while not address.exists():
            assert server.poll() is None, "the server ended"
            time.sleep(0.05)
        yield {"BASH_ENV": str(shell)}
    finally:
        server.terminate()
        server.wait()


def serve(address: str) -> None:
    """A fork for each request."""
    for name in LOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen()
        Path(f"{address}.new").rename(address)
        while True:
            asking, _ = server.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                answer(asking)
            asking.close()


def answer(asking: socket.socket) -> None:
    """Become the process that was asked for; its exit status is the reply."""
    _, streams, _, _ = socket.recv_fds(asking, 1, 3)
    with asking.makefile() as words:
        arguments, place, environment = json.load(words)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(":")
    status = 1
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    asking.sendall(str(status).encode())
    os._exit(status)


def ask(address: str, *arguments: str) -> int:
    """Let the server run a script with these arguments here; its exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"-"], [0, 1, 2])
        server.sendall(json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode())
        server.shutdown(socket.SHUT_WR)
        return int(server.recv(16) or 1)


if __name__ == "__main__":
    sys.exit({"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:]))
