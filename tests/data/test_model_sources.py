"""Whatever the source, a model ends as one folder with known files, or not at all."""

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dynatree import files
from dynatree.data import model_sources
from dynatree.distil.recipe import Recipe
from dynatree.engine import checkpoint
from dynatree.errors import UserError

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
RANDOM = {"kind": "random", "architecture": "llama", "configuration": SHAPE}


def build(values: dict[str, Any], folder: Path, seed: int = 0) -> Path:
    model_sources.build(model_sources.parse(values), folder, folder.parent / "cache", seed)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the random source; tests must not change it."""
    return build(RANDOM, tmp_path_factory.mktemp("weights") / "made")


def test_folder_has_exactly_the_files_that_a_workflow_names(made: Path) -> None:
    """Guards against outputs that a job graph does not know, and against left-overs beside the folder."""
    assert sorted(path.name for path in made.iterdir()) == sorted(files.MODEL_FILES)
    assert [path.name for path in made.parent.iterdir()] == ["made"]


def test_manifest_has_origin_and_checksums(made: Path) -> None:
    """Guards against a manifest that stands for other weights."""
    manifest = files.read_json(made / "manifest.json")
    assert manifest["origin"] == RANDOM
    assert manifest["sha256"] == {name: files.sha256(made / name) for name in files.MODEL_FILES[:-1]}


def test_a_file_that_cannot_be_written_to_its_end_is_an_error_of_one_line(tmp_path: Path) -> None:
    """Guards against a traceback of the library that writes weights, and against what it leaves half-written."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, usual[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / 'made'}'"):
            build(RANDOM, tmp_path / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_random_models_depend_on_the_seed_alone(made: Path, tmp_path: Path) -> None:
    """Guards against results of the tiny scale that cannot be made again."""
    torch.manual_seed(99)
    again, other = build(RANDOM, tmp_path / "again"), build(RANDOM, tmp_path / "other", seed=1)
    assert files.read_json(again / "manifest.json") == files.read_json(made / "manifest.json")
    assert files.sha256(other / files.WEIGHTS) != files.sha256(made / files.WEIGHTS)


def test_folder_loads_with_its_byte_tokenizer(made: Path) -> None:
    """Guards the round trip of any text, and ids within the vocabulary."""
    loaded = checkpoint.load(made)
    text = "Bäume, 木, 🌳\n\t end"
    ids = loaded.tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert loaded.tokenizer.decode(ids) == text
    assert loaded.vocabulary_size == len(loaded.tokenizer) == 257


@pytest.mark.parametrize("moved", range(5))
def test_a_kill_between_files_leaves_no_manifest(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Guards against a manifest of old weights beside new ones: an interrupted folder must be built again."""
    folder = tmp_path / "model"
    shutil.copytree(made, folder)
    real, calls = Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        if len(calls) == moved:
            raise KeyboardInterrupt
        calls.append(target)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        build(RANDOM, folder, seed=1)
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["model"]
    build(RANDOM, folder, seed=1)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files.MODEL_FILES)


def test_an_unwritable_tokenizer_leaves_the_old_folder_whole(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against taking the manifest away before the new files are known to be complete."""
    folder = tmp_path / "model"
    shutil.copytree(made, folder)
    loaded = checkpoint.load(made)
    monkeypatch.setattr(type(loaded.tokenizer), "save_pretrained", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"writes no tokenizer\.json"):
        model_sources.save(loaded.model, loaded.tokenizer, folder, {})
    assert (folder / "manifest.json").is_file()


def test_a_local_folder_is_a_source(made: Path, tmp_path: Path) -> None:
    """Guards against changed weights, and against a manifest that holds a path of this machine."""
    copy = build({"kind": "local", "path": str(made)}, tmp_path / "copy")
    assert sorted(path.name for path in copy.iterdir()) == sorted(files.MODEL_FILES)
    ours, theirs = checkpoint.load(copy).model.state_dict(), checkpoint.load(made).model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert files.read_json(copy / "manifest.json")["origin"] == {"kind": "local", "folder": "made"}


def test_a_local_folder_keeps_its_precision(made: Path, tmp_path: Path) -> None:
    """Guards against half-precision checkpoints that double in size, or float32 ones that lose digits."""
    loaded = checkpoint.load(made, "bfloat16")
    loaded.model.save_pretrained(tmp_path / "half")
    loaded.tokenizer.save_pretrained(tmp_path / "half")
    copy = build({"kind": "local", "path": str(tmp_path / "half")}, tmp_path / "copy")
    assert files.read_json(copy / "config.json")["dtype"] == "bfloat16"


@pytest.mark.parametrize("named", [None, [3, 1, 200]])
def test_a_local_drafter_keeps_its_drafted_tokens(made: Path, tmp_path: Path, named: list[int] | None) -> None:
    """Guards against a distilled drafter that the workflow measures over the whole vocabulary."""
    own = shutil.copytree(made, tmp_path / "own")
    if named:
        files.write_json(own / files.DRAFT_VOCABULARY, named)
    model_sources.build(
        model_sources.parse({"kind": "local", "path": str(own)}), tmp_path / "copy", tmp_path, 0, drafter=True
    )
    every = list(range(checkpoint.load(own).vocabulary_size))
    assert files.read_json(tmp_path / "copy" / files.DRAFT_VOCABULARY) == (named or every)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")


def incomplete(folder: Path) -> None:
    config = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", {**config, "num_hidden_layers": 3})


def wordless(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def unconfigured(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, "pickled weights are not loaded"),
        (damaged, "cannot be read"),
        (incomplete, "lacks weights: "),
        (wordless, "has no tokenizer"),
        (unconfigured, r"has no config\.json"),
        (shutil.rmtree, "no folder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_local_folder_that_is_no_model_is_refused(made: Path, tmp_path: Path, spoil: Any, said: str) -> None:
    """Guards against running pickled code, and against random weights in place of missing ones."""
    source = tmp_path / "source"
    shutil.copytree(made, source)
    spoil(source)
    with pytest.raises(UserError, match=said):
        build({"kind": "local", "path": str(source)}, tmp_path / "copy")
    assert not (tmp_path / "copy" / "manifest.json").exists()


def test_an_unreachable_hub_is_said_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against minutes of silent retries, which sleep in between; nothing listens on port 9."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits and tries again"))
    with pytest.raises(UserError, match=r"model 'nobody/nothing-at-all': the hub .*:9 is not reachable.*kind `local`"):
        build({"kind": "hub", "repository": "nobody/nothing-at-all"}, tmp_path / "model")
    assert not (tmp_path / "model" / "manifest.json").exists()


@pytest.mark.parametrize("kind", ["magic", None, ""])
def test_an_unknown_kind_lists_the_choices(kind: str | None) -> None:
    """Guards against a validation error that names no choice."""
    with pytest.raises(UserError, match="choose one of package, hub, local, random, trained"):
        model_sources.parse({"kind": kind}, also={"trained": model_sources.LocalWeights})


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    """Guards against a traceback of transformers."""
    with pytest.raises(UserError, match="architecture 'llamma'"):
        build({**RANDOM, "architecture": "llamma"}, tmp_path / "model")


def test_a_distilled_model_cannot_be_fetched(tmp_path: Path) -> None:
    """Guards against a download rule that is asked for a drafter which must be trained."""
    recipe = {"layers": [0], "vocabulary": 8, "negatives": 0, "tokens": 8, "batch": 1, "length": 4}
    recipe |= {"learning_rate": 1e-3, "repeat_share": 0, "norm_scale": 1}
    with pytest.raises(UserError, match="kind: no 'distil'; choose one of package"):
        build({"kind": "distil", **recipe}, tmp_path / "model")
    assert json.dumps(
        model_sources.parse({"kind": "distil", **recipe}, also={"distil": Recipe}).model_dump(mode="json")
    )
