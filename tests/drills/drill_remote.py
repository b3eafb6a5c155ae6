"""Results travel: pushed to a remote, cloned, pulled, and nothing is to be done there."""

import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.transcript import STEPS, Transcript, commit, finished, make
from tests.workflow.world import BIN, ENVIRONMENT, World

BUCKET = "dynatree"
KEYS = {"AWS_ACCESS_KEY_ID": "drill", "AWS_SECRET_ACCESS_KEY": "drill", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3-compatible server on loopback with an empty bucket; its keys are in the environment."""
    if not (importlib.util.find_spec("moto") and importlib.util.find_spec("dvc_s3")):
        pytest.skip("pip install -e '.[s3,drills]' first")
    for name, value in KEYS.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [BIN / "moto_server", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        made = f"import boto3; boto3.client('s3', endpoint_url='{address}').create_bucket(Bucket='{BUCKET}')"
        until = time.monotonic() + 60
        while subprocess.run([BIN / "python", "-c", made], env=ENVIRONMENT, capture_output=True).returncode:
            assert server.poll() is None and time.monotonic() < until, f"no S3 server at {address}"
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def push_clone_pull(world: World, page: Transcript, other: Path) -> None:
    """Push to the default remote; in a clone there is nothing to do after a pull, in either tool."""
    commit(page)
    page.run("dvc", "push", keep="pushed|uptodate|up to date")
    page.run("git", "clone", "-q", world.folder, other, cwd=other.parent)
    page.say("In the clone:")
    page.run("dvc", "pull", "--quiet", cwd=other)
    page.run(*make("touch"), keep=STEPS, cwd=other)
    said = page.run(*make("all"), keep=STEPS, cwd=other)
    assert "Nothing to be done" in said
    repeated = page.run("dvc", "repro", keep="Running|up to date", cwd=other)
    assert "Running stage" not in repeated
    status = subprocess.run(["git", "status", "--porcelain", "dvc.lock"], cwd=other, capture_output=True, text=True)
    assert status.stdout == ""


def test_a_folder(tmp_path: Path) -> None:
    """A shared folder as remote: the clone has models, data and results without measuring anything."""
    world, page = finished(
        tmp_path / "first",
        "Hand-over through a folder",
        "A finished checkout is pushed to a DVC remote that is a folder, cloned and pulled. There is nothing to do "
        "there, in either tool.",
    )
    page.run("dvc", "remote", "add", "--default", "store", tmp_path / "store", keep="Setting")
    push_clone_pull(world, page, tmp_path / "second")
    page.write("remote_folder")


def test_s3(tmp_path: Path, store: str) -> None:
    """The same through an S3-compatible server; `pip install -e '.[s3]'` is all that it takes."""
    world, page = finished(
        tmp_path / "first",
        "Hand-over through S3",
        "The same as through a folder, with `pip install -e '.[s3]'` and a server on loopback (moto) that speaks S3. "
        "The keys are in the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`).",
    )
    page.run("dvc", "remote", "add", "--default", "store", f"s3://{BUCKET}/results", keep="Setting")
    world.run("dvc", "remote", "modify", "store", "endpointurl", store)
    page.note("dvc remote modify store endpointurl http://127.0.0.1:PORT", "", "")
    push_clone_pull(world, page, tmp_path / "second")
    page.write("remote_s3")
