"""Run a script in a process that has imported what scripts need, and keeps the models that it loaded last.

    python workflow/scripts/worker.py workflow/scripts/generate.py ...

The first call in a checkout starts this worker; it ends when it was idle for a while, after an unforeseen failure, and
where code, packages or environment have changed since it began. Calls at the same time have a worker each. A script
has the folder, the streams and the environment of its call, and is ended with it. DYNATREE_WORKER=off: a process of
its own. The jobs of the graph are called so (workflow/rules/common.smk).
"""

import ctypes
import fcntl
import gc
import hashlib
import json
import os
import runpy
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from itertools import count
from pathlib import Path

SWITCH = "DYNATREE_WORKER"
HOME = Path(".cache/worker")
IDLE_SECONDS = 30
START_SECONDS = 60
# Of a call, and of no meaning to what it runs.
PASSING = {"PWD", "OLDPWD", "SHLVL", "_", "DVC_STAGE", SWITCH}


def main() -> int:
    """The exit status of the script that the command line names."""
    if os.environ.get(SWITCH) == "off" or not hasattr(socket, "send_fds"):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    HOME.mkdir(parents=True, exist_ok=True)
    for place in count():
        # A socket is of one machine, though others may see its name.
        address = HOME / f"{socket.gethostname()}-{place}"
        with address.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return called(address)
    raise AssertionError


def called(address: Path) -> int:
    """The same by the worker at `address`, which is started where there is none of this state."""
    wanted = state()
    status = asked(address, wanted)
    if status is None:
        log = address.with_suffix(".log")
        with log.open("w") as said:
            serving = [sys.executable, __file__, "--serve", str(address), wanted]
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
    for path in sorted([*Path("dynatree").rglob("*.py"), *Path("workflow/scripts").glob("*.py")]):
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


def serve(address: str, state: str) -> None:
    """Run what calls of this `state` ask for, one after the other."""
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
    over = threading.Event()
    threading.Thread(target=end_with, args=(call, over), daemon=True).start()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    status, sound = run(arguments[0])
    sys.stdout.flush()
    sys.stderr.flush()
    let_go()
    give_back()
    if not sound:
        leave(address)
    over.set()
    call.sendall(f"{status}\n".encode())
    return sound


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


def end_with(call: socket.socket, over: threading.Event) -> None:
    """End this process when the caller of a script that still runs has ended."""
    gone = not call.recv(1)
    if gone and not over.is_set():
        os._exit(1)


def run(script: str) -> tuple[int, bool]:
    """The exit status that Python would have after `script`, and whether the script ended in order."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None), True
    except BaseException:
        traceback.print_exc()
        return 1, False
    return 0, True


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(*sys.argv[2:])
    else:
        sys.exit(main())
