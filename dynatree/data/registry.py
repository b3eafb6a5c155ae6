"""Archives of the package registry: fetch one with its checksum, take a member out. Never runs what is inside.

Knows nothing of what the members mean.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import IO

from dynatree.config import Knobs
from dynatree.errors import UserError
from dynatree.files import replacing
from dynatree.files import sha256 as file_sha256


class Package(Knobs):
    """One archive: `name==version`, its file name and SHA-256, pip options that choose among the platforms' files."""

    requirement: str  # name==version
    file: str  # name of the archive
    sha256: str  # its checksum
    options: tuple[str, ...] = ()  # of pip, where one platform's file is to be taken


# pip asks a source archive's build backend for metadata; this one answers without running the archive's setup.py.
_BACKEND = """
import os
class _Backend:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []
    @staticmethod
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        name, version = {name!r}, {version!r}
        folder = f"{{name}}-{{version}}.dist-info"
        os.makedirs(os.path.join(metadata_directory, folder))
        with open(os.path.join(metadata_directory, folder, "METADATA"), "w") as file:
            file.write(f"Metadata-Version: 2.1\\nName: {{name}}\\nVersion: {{version}}\\n")
        return folder
__legacy__ = _Backend
get_requires_for_build_wheel = _Backend.get_requires_for_build_wheel
prepare_metadata_for_build_wheel = _Backend.prepare_metadata_for_build_wheel
"""


def fetch(
    requirement: str,
    sha256: str,
    filename: str,
    folder: Path,
    platform_options: Sequence[str] = (),
    time_limit: float = 1200.0,
) -> Path:
    """The archive `folder/filename` with checksum `sha256`, fetched by pip unless it is there already.

    `requirement` is `name==version`; `time_limit` is in seconds. Raises UserError if the registry cannot be reached,
    gives no such file, or gives one with another checksum; nothing is left in place then.
    """
    name, separator, version = requirement.partition("==")
    if not (name and separator and version):
        raise UserError(f"package {requirement!r}: expected name==version")
    target = Path(folder) / filename
    if target.is_file() and file_sha256(target) == sha256:
        return target
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {filename} ({requirement}) from the package registry", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{filename}.") as scratch:
        _download(name, version, sha256, filename, Path(scratch), platform_options, time_limit)
        downloaded = Path(scratch) / "out" / filename
        if not downloaded.is_file():
            others = ", ".join(sorted(path.name for path in downloaded.parent.glob("*"))) or "nothing"
            raise UserError(f"package {requirement}: expected the file {filename}, pip downloaded {others}")
        _check(downloaded, sha256, f"package {requirement}: {filename}")
        downloaded.replace(target)
    return target


def _download(
    name: str, version: str, sha256: str, filename: str, scratch: Path, options: Sequence[str], time_limit: float
) -> None:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--timeout=30", "--retries=2"]
    environment = dict(os.environ)
    if filename.endswith(".whl"):
        command += ["--only-binary=:all:"]
    else:
        backend = scratch / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").write_text("", encoding="utf-8")
        (backend / "build_meta.py").write_text(_BACKEND.format(name=name, version=version), encoding="utf-8")
        earlier = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(backend.parent), *([earlier] if earlier else [])])
        command += [f"--no-binary={name}", "--use-pep517", "--no-build-isolation"]
    command += [*options, "--dest", str(scratch / "out"), "--requirement", str(requirements)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=time_limit, env=environment)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"package {name}=={version}: pip did not finish within {time_limit:g} s; is the package registry reachable?"
        ) from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("[notice]")]
        raise UserError(f"package {name}=={version}: pip could not download it:\n" + "\n".join(lines[-12:]))


def _check(path: Path, expected: str, what: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise UserError(f"{what}: expected SHA-256 {expected}, found {found}")


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        if archive.name.endswith((".whl", ".zip")):
            with zipfile.ZipFile(archive) as wheel:
                yield wheel
        else:
            with tarfile.open(archive) as tar:
                yield tar
    except FileNotFoundError as error:
        raise UserError(f"{archive}: no such archive") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive}: damaged archive: {error}; remove it to fetch it again") from error


def member_names(archive: Path) -> list[str]:
    """Names of the files in a zip, wheel or tar archive, sorted."""
    with _opened(archive) as opened:
        if isinstance(opened, zipfile.ZipFile):
            return sorted(entry.filename for entry in opened.infolist() if not entry.is_dir())
        return sorted(entry.name for entry in opened if entry.isfile())


def read_members(archive: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of some members of an archive, in the order of `names`."""
    with _opened(archive) as opened:
        for name in names:
            with _stream(opened, name, archive) as stream:
                yield name, stream.read()


def _stream(opened: zipfile.ZipFile | tarfile.TarFile, member: str, archive: Path) -> IO[bytes]:
    try:
        stream = opened.open(member) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member)
    except KeyError as error:
        raise UserError(f"{archive}: no member {member!r}") from error
    if stream is None:
        raise UserError(f"{archive}: member {member!r} is not a file")
    return stream


def extract_member(archive: Path, member: str, destination: Path, sha256: str | None = None) -> Path:
    """Write one member of an archive to `destination`, atomically, and return it; reused if the checksum agrees.

    Raises UserError if the archive is damaged, has no such member, or the member has another checksum.
    """
    if sha256 and destination.is_file() and file_sha256(destination) == sha256:
        return destination
    with _opened(archive) as opened, replacing(destination) as temporary:
        with _stream(opened, member, archive) as source, temporary.open("wb") as file:
            copyfileobj(source, file, 1 << 20)
        if sha256:
            _check(temporary, sha256, f"{archive}: member {member}")
    return destination
