"""Run a script in a process that has imported what scripts need, and keeps the models that it loaded last.

    python workflow/scripts/worker.py workflow/scripts/generate.py ...
    python workflow/scripts/worker.py snakemake --cores 1 ...

The first call in a checkout starts this worker; it ends when it was idle for a while, after an unforeseen failure, and
where code, packages or environment have changed since it began. Calls at the same time have a worker each. A script
has the folder, the streams and the environment of its call, and is ended with it. DYNATREE_WORKER=off: a process of
its own. The jobs of the graph are called so (workflow/rules/common.smk). A program (PROGRAMS) has a worker apart, which
has imported it, and is run by a copy of that process, of which nothing is kept: DVC's stages call Snakemake so.
"""

import ctypes
import fcntl
import gc
import hashlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

SWITCH = "DYNATREE_WORKER"
HOME = Path(".cache/worker")
IDLE_SECONDS = 30
START_SECONDS = 60
# Where the `main` of a program is, and what it imports later on.
PROGRAMS = {
    "snakemake": ("snakemake.cli", "snakemake.report", "pandas", "dynatree.distil.recipe", "dynatree.tables.headline")
}
# Of a call, and of no meaning to what it runs.
PASSING = {"PWD", "OLDPWD", "SHLVL", "_", "DVC_STAGE", SWITCH}


def main() -> int:
    """The exit status of the script or program that the command line names."""
    program = sys.argv[1] if sys.argv[1] in PROGRAMS else ""
    if os.environ.get(SWITCH) == "off" or not hasattr(socket, "send_fds"):
        os.execv(sys.executable, [sys.executable, *(["-m"] if program else []), *sys.argv[1:]])
    HOME.mkdir(parents=True, exist_ok=True)
    for place in count():
        # A socket is of one machine, though others may see its name.
        address = HOME / "-".join(filter(None, (socket.gethostname(), program, str(place))))
        with Path(f"{address}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return called(address, program)
    raise AssertionError


def called(address: Path, program: str) -> int:
    """The same by the worker at `address`, which is started where there is none of this state."""
    wanted = state()
    status = asked(address, wanted)
    if status is None:
        log = Path(f"{address}.log")
        with log.open("w") as said:
            serving = [sys.executable, __file__, "--serve", str(address), wanted, program]
            worker = subprocess.Popen(
                serving, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        latest = time.monotonic() + START_SECONDS
        while status is None and worker.poll() is None and time.monotonic() < latest:
            time.sleep(0.02)
            status = asked(address, wanted)
    if status is None:
        print(f"no worker could be started: {log.read_text()}", file=sys.stderr)
    return 1 if status is None else status


def state() -> str:
    """What a worker has to share with a call: code, packages and environment."""
    told = hashlib.sha256(json.dumps([sys.executable, Path(sysconfig.get_path("purelib")).stat().st_mtime_ns]).encode())
    told.update(json.dumps(sorted(item for item in os.environ.items() if item[0] not in PASSING)).encode())
    code = [path for kind in ("py", "cpp", "hpp") for path in Path("dynatree").rglob(f"*.{kind}")]
    for path in sorted([*code, *Path("workflow/scripts").glob("*.py")]):
        told.update(f"\n{path}\n".encode() + path.read_bytes())
    return told.hexdigest()


def asked(address: Path, wanted: str) -> int | None:
    """The exit status of this call's script; None where no worker of this state takes it."""
    with socket.socket(socket.AF_UNIX) as worker:
        try:
            worker.connect(str(address))
            socket.send_fds(worker, [b"-"], [0, 1, 2])
            worker.sendall(json.dumps([wanted, sys.argv[1:], dict(os.environ)]).encode() + b"\n")
            replies = worker.makefile()
            if not replies.readline():
                return None
        except OSError:
            return None
        # Nothing: it was killed.
        return int(replies.readline() or 1)


def serve(address: str, state: str, program: str) -> None:
    """Run what calls of this `state` ask for, one after the other: scripts, or one of PROGRAMS."""
    if program:
        # Its own modules and the library's, none of the scripts that lie here.
        here = str(Path(__file__).resolve().parent)
        sys.path[:] = [folder for folder in sys.path if folder != here]
        for module in PROGRAMS[program]:
            importlib.import_module(module)
        gc.freeze()
        # Where this was started by what ignores it, its copies are ended by it all the same.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with socket.socket(socket.AF_UNIX) as server:
        beginning = Path(f"{address}.new")
        beginning.unlink(missing_ok=True)
        server.bind(str(beginning))
        server.listen()
        server.settimeout(IDLE_SECONDS)
        beginning.rename(address)
        going = True
        while going:
            try:
                call, _ = server.accept()
            except TimeoutError:
                going = False
            else:
                with call:
                    going = answer(call, address, state)
        leave(address)


def leave(address: str) -> None:
    """Before a caller learns that it is to start another worker, whose name this is to be."""
    Path(address).unlink(missing_ok=True)


def answer(call: socket.socket, address: str, state: str) -> bool:
    """Run what `call` asks for; whether another may be answered after it."""
    call.settimeout(None)
    _, streams, _, _ = socket.recv_fds(call, 1, 3)
    wanted, arguments, environment = json.loads(call.makefile().readline())
    if wanted != state:
        leave(address)
        return False
    call.sendall(b"taken\n")
    if arguments[0] in PROGRAMS:
        status, sound = run_in_a_copy(call, streams, arguments, environment), True
    else:
        over = begin(call, streams, arguments, environment, lambda: os._exit(1))
        status, sound = run(lambda: runpy.run_path(arguments[0], run_name="__main__"))
        let_go()
        give_back()
        over.set()
    if not sound:
        leave(address)
    call.sendall(f"{status}\n".encode())
    return sound


def begin(
    call: socket.socket, streams: list[int], arguments: list[str], environment: dict[str, str], end: Callable[[], None]
) -> threading.Event:
    """Be as the caller is, until the event that is returned is set; `end` ends all when the caller has ended before."""
    over = threading.Event()
    threading.Thread(target=end_with, args=(call, over, end), daemon=True).start()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    return over


def run_in_a_copy(call: socket.socket, streams: list[int], arguments: list[str], environment: dict[str, str]) -> int:
    """The exit status of a program, run by a copy of this process in a group of its own."""
    copy = os.fork()
    if not copy:
        os.setpgid(0, 0)
        # As from a terminal: to the program and all that it has started.
        begin(call, streams, arguments, environment, lambda: os.killpg(0, signal.SIGINT))
        main = importlib.import_module(PROGRAMS[arguments[0]][0]).main
        os._exit(run(lambda: sys.exit(main()))[0])
    for stream in streams:
        os.close(stream)
    status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    return status if status >= 0 else 128 - status


def let_go() -> None:
    """Hold no stream of the call, nor copies that a library took (vl-convert does): a reader waits for their end."""
    theirs = {os.fstat(number)[1:3] for number in range(3)}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for name in [path.name for path in Path("/dev/fd").iterdir()]:
        try:
            if os.fstat(int(name))[1:3] in theirs:
                os.dup2(nowhere, int(name), inheritable=int(name) < 3)
        except OSError:
            # What the folder was listed by.
            continue
    os.close(nowhere)


def give_back() -> None:
    """Memory that nothing holds: models of another format may be next."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def end_with(call: socket.socket, over: threading.Event, end: Callable[[], None]) -> None:
    """Call `end` when the caller of what still runs has ended."""
    gone = not call.recv(1)
    if gone and not over.is_set():
        end()


def run(what: Callable[[], object]) -> tuple[int, bool]:
    """The exit status that Python would have after `what`, all of it said, and whether it ended in order."""
    status, sound = 0, True
    try:
        what()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status, sound = 1, False
    sys.stdout.flush()
    sys.stderr.flush()
    return status, sound


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(*sys.argv[2:])
    else:
        sys.exit(main())
