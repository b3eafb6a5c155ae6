"""Write files whole or not at all: to a temporary neighbour first, then rename."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Where the library lies.
PACKAGE = Path(__file__).resolve().parent
# Files of a model folder; the manifest, written last, holds the others' checksums.
WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, MANIFEST)
# A drafter's has one more: the token ids that it drafts, most frequent first, which only this project reads.
DRAFT_VOCABULARY = "draft_vocabulary.json"
DRAFTER_FILES = (*MODEL_FILES, DRAFT_VOCABULARY)
# And what its target puts after each token, where that was counted.
SUCCESSORS = "successors.safetensors"
# One that reads its target's states has what fuses them, too.
FUSION = "fusion.safetensors"
# What a drafter's folder may have besides the files of a model.
FURTHER = (DRAFT_VOCABULARY, FUSION, SUCCESSORS)
# The folder of calibrations with such a one, below that of the others.
READING = "features"
# Files of a run folder: what is deterministic, what was timed, what the audit found; of a pass: phases, memory.
OUTPUTS, TIMINGS, AUDIT, PHASES, MEMORY = "outputs.jsonl", "timings.json", "audit.jsonl", "phases.json", "memory.json"

# Beside the benchmark's records: which of their folders the table is made of.
CURRENT = "current.json"


def drafter_of(target: str) -> str:
    """The name of the model folder of a target's drafter."""
    return f"{target}-drafter"


def features_of(target: str) -> str:
    """The name of the model folder of a target's drafter that reads its states."""
    return f"{target}-features"


def digest(asked: Any) -> str:
    """A name for what was asked, short enough for a folder."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where the user's caches are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynatree"


@contextmanager
def written(path: str | Path) -> Iterator[None]:
    """Within, what the file system refuses is an OSError for `path`, whichever library writes."""
    try:
        yield
    except Exception as error:
        # Libraries in Rust (safetensors, tokenizers) have exceptions of their own.
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused is None or isinstance(error, OSError):
            raise
        number = int(refused[1])
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes the name `path`, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with written(path):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with stable key order, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows))


def read_json(path: str | Path) -> Any:
    """The JSON value in `path`."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects of `path`, one a line."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def sampled_sha256(path: str | Path) -> str:
    """SHA-256 of a file's size and of the first 4 KiB of each of its MiB: tells a large file apart at once."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "big"))
        for place in range(0, size, 2**20):
            file.seek(place)
            digest.update(file.read(2**12))
    return digest.hexdigest()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
