"""From target and text to a checkpoint: killed and resumed, shipped and assembled, and refused for another target."""

import json
import multiprocessing
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dynatree import code_checksums, files
from dynatree.data.splits import EVALUATION
from dynatree.distil import labels, part
from dynatree.distil.make import LABELLING, TRAINING, make
from dynatree.distil.recipe import Recipe
from dynatree.engine import checkpoint, successors
from dynatree.errors import UserError
from tests.distil.worlds import DATASETS, reading_recipe, recipe, target_folder, trained

TOKENS = 6400
# Each is forked from one that has the imports, which take longer than the run.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([make.__module__])


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return target_folder(tmp_path_factory.mktemp("target") / "target", request.param)


@pytest.fixture(scope="module")
def made(target: Path) -> Path:
    """The trained part; tests must not change it."""
    torch.set_num_threads(1)
    return make(target, DATASETS, recipe(), seed=0, work=target.parent / "work", command="the command")


def test_the_record_says_how_it_was_made(made: Path) -> None:
    """Guards against a part of unknown origin, and against a drafter trained on evaluation text."""
    record = part.read_record(made)
    assert record["recipe"] == recipe().model_dump(mode="json")
    assert record["command"] == "the command"
    assert record["tokens"]["labelled"] >= 700
    assert {"steps", "seconds", "articles", "books"} == set(record["context"])
    assert {"articles_top1", "books_top3", "continuations_top1"} <= set(record["agreement"])
    for name, data in record["data"].items():
        assert data["split"] == "tuning"
        evaluation = {d.document_id for d in DATASETS[name] if d.split == "evaluation"}
        assert not evaluation & {*data["training"], *data["held_out"]}
    assert record["versions"]["processor"]


def test_a_part_with_its_target_is_a_checkpoint(target: Path, made: Path, tmp_path: Path) -> None:
    """Guards against a checkpoint that transformers cannot load, or whose embedding is not the target's."""
    part.assemble(made, target, tmp_path / "drafter")
    assert sorted(p.name for p in (tmp_path / "drafter").iterdir()) == sorted([*files.DRAFTER_FILES, files.SUCCESSORS])
    manifest = files.read_json(tmp_path / "drafter" / "manifest.json")
    assert set(manifest["sha256"]) == {*files.DRAFTER_FILES, files.SUCCESSORS} - {files.MANIFEST}
    drafter = AutoModelForCausalLM.from_pretrained(tmp_path / "drafter")
    original = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(drafter.get_input_embeddings().weight, original.get_input_embeddings().weight)
    assert torch.equal(drafter.get_output_embeddings().weight, original.get_output_embeddings().weight)
    state = drafter.state_dict()
    for name, value in load_file(made / part.LAYERS).items():
        assert torch.equal(state[name], value.float())
    assert drafter.config.draft_window == recipe().length
    table = successors.load(made / files.SUCCESSORS, len(original.get_input_embeddings().weight))
    shards = sorted(made.parent.parent.glob("*/labels/*"))
    counted = labels.successors_of(shards, len(table.ids), recipe().labels.successors)
    assert (table.ids == counted.ids).all()
    loaded = checkpoint.load_drafter(tmp_path / "drafter")
    assert (loaded.successors.ids == table.ids).all() and loaded.in_context.levels == 2
    before = checkpoint.fingerprint(tmp_path / "drafter")
    (tmp_path / "drafter" / files.SUCCESSORS).unlink()
    assert checkpoint.fingerprint(tmp_path / "drafter") != before
    vocabulary = json.loads((tmp_path / "drafter" / files.DRAFT_VOCABULARY).read_text())
    assert len(vocabulary) == len(set(vocabulary)) == 40


def test_a_drafter_that_reads_becomes_a_checkpoint_that_reads(target: Path, tmp_path: Path) -> None:
    """Guards against a fusion that is lost on the way, or that is left in the model's own weights."""
    made = make(target, DATASETS, reading_recipe(), seed=0, work=tmp_path / "work")
    record = part.read_record(made)
    assert record["tokens"]["trained"] >= 2 * 700 and record["tokens"]["labelled"] >= 700
    assert {"articles_top1", "articles_level2_top1", "continuations_level2_top3"} <= set(record["agreement"])
    out = tmp_path / "drafter"
    part.assemble(made, target, out)
    written = {*files.DRAFTER_FILES, files.SUCCESSORS, files.FUSION}
    assert {p.name for p in out.iterdir()} == written
    assert set(files.read_json(out / "manifest.json")["sha256"]) == written - {files.MANIFEST}
    drafter, layers = checkpoint.load_drafter(out), load_file(made / part.LAYERS)
    assert drafter.reads == (1, 2) and drafter.window == reading_recipe().length
    state = drafter.language_model.model.state_dict()
    for name, value in layers.items():
        kept = drafter.fusion.state_dict()[name.removeprefix("fusion.")] if name.startswith("fusion.") else state[name]
        assert torch.equal(kept.float(), value.float()), name
    assert sum(name.startswith("fusion.") for name in layers) == len(drafter.fusion.state_dict())
    assert not any("fusion" in name for name in load_file(out / files.WEIGHTS))


def test_a_part_without_the_table_that_its_recipe_asks_for_is_refused(made: Path, tmp_path: Path) -> None:
    """Guards a job graph whose rule names a file that the part has not, and says how to go on."""
    shutil.copytree(made, tmp_path / "part")
    part.check(tmp_path / "part", recipe(), DATASETS)
    (tmp_path / "part" / files.SUCCESSORS).unlink()
    with pytest.raises(
        UserError, match=r"no successors\.safetensors, which labels\.successors asks for; write 0 there, or"
    ):
        part.check(tmp_path / "part", recipe(), DATASETS)


def test_no_table_where_none_is_asked_for(target: Path, tmp_path: Path) -> None:
    """Guards those who want a drafter as small as can be."""
    made = make(
        target,
        DATASETS,
        recipe(labels={**recipe().labels.model_dump(), "successors": 0, "context": None}),
        seed=0,
        work=tmp_path,
    )
    assert not (made / files.SUCCESSORS).exists()
    part.assemble(made, target, tmp_path / "drafter")
    assert sorted(p.name for p in (tmp_path / "drafter").iterdir()) == sorted(files.DRAFTER_FILES)


@pytest.mark.parametrize("reads", [False, True], ids=["tokens", "states"])
def test_a_training_goes_on_from_a_part(target: Path, tmp_path: Path, reads: bool) -> None:
    """Guards against a start whose weights or vocabulary are not taken, or that the record does not name."""
    torch.set_num_threads(1)
    wanted = reading_recipe() if reads else recipe()
    first = make(target, DATASETS, wanted, seed=0, work=tmp_path / "work")
    # A vocabulary that the text does not give.
    drafted = files.read_json(first / files.DRAFT_VOCABULARY)
    files.write_json(first / files.DRAFT_VOCABULARY, [*drafted[1:], 99])
    small = Recipe(**{**wanted.model_dump(), "learning_rate": 1e-9})
    second = make(target, DATASETS, small, seed=1, work=tmp_path / "work", start=first)
    weights, before = (load_file(folder / part.LAYERS) for folder in (second, first))
    for name, value in before.items():
        assert torch.allclose(weights[name].float(), value.float(), atol=1e-4), name
    assert files.read_json(second / files.DRAFT_VOCABULARY) == [*drafted[1:], 99]
    record = part.read_record(second)
    assert record["start"]["recipe"] == wanted.model_dump(mode="json")
    assert record["start"]["tokens"] == part.read_record(first)["tokens"]
    # It is as good where the first one's recipe is asked for, and the second one's is nothing to begin with.
    part.check(second, wanted, DATASETS)
    with pytest.raises(UserError, match=r"trained with learning_rate 0\.005, the parameters say 1e-09"):
        part.check(second, small, DATASETS)


def test_a_start_of_another_model_is_refused(target: Path, made: Path, tmp_path: Path) -> None:
    """Guards against weights that land in the wrong layer, and against a vocabulary of another size."""
    for changes in ({"layers": [1]}, {"vocabulary": 30}):
        with pytest.raises(UserError, match=next(iter(changes))):
            make(target, DATASETS, recipe(**changes), seed=0, work=tmp_path / "work", start=made)
    other = target_folder(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="another target"):
        make(other, DATASETS, recipe(), seed=0, work=tmp_path / "work", start=made)
    with pytest.raises(UserError, match=part.RECORD):
        make(target, DATASETS, recipe(), seed=0, work=tmp_path / "work", start=tmp_path)


def test_a_part_for_another_target_is_refused(target: Path, made: Path, tmp_path: Path) -> None:
    """Guards against a drafter that agrees with nothing: same shape, other weights."""
    other = target_folder(tmp_path / "other", files.read_json(target / "config.json")["model_type"], seed=1)
    with pytest.raises(UserError, match=r"trained for another target .*take that target, or train"):
        part.assemble(made, other, tmp_path / "drafter")
    assert not (tmp_path / "drafter").exists()


def test_a_damaged_part_is_refused(target: Path, made: Path, tmp_path: Path) -> None:
    """Guards against a traceback for a truncated file, and against half a part."""
    with pytest.raises(UserError, match=r"no record\.json"):
        part.assemble(tmp_path, target, tmp_path / "drafter")
    for name in (part.RECORD, part.LAYERS, files.DRAFT_VOCABULARY):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / part.LAYERS).write_bytes(b"short")
    with pytest.raises(UserError, match="damaged part"):
        part.assemble(tmp_path, target, tmp_path / "drafter")


def test_the_work_of_another_recipe_is_not_mixed_in(target: Path, made: Path) -> None:
    """Guards against resuming the training of other settings."""
    other = make(target, DATASETS, recipe(), seed=1, work=target.parent / "work")
    assert other != made
    assert files.sha256(other / part.LAYERS) != files.sha256(made / part.LAYERS)
    assert make(target, DATASETS, recipe(), seed=0, work=target.parent / "work") == made


def test_changed_code_trains_anew(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against the weights of an earlier version in silence, and against labels that cost hours made again."""

    def train() -> tuple[Path, set[tuple[Path, int]]]:
        folder = make(target, DATASETS, recipe(), seed=0, work=tmp_path)
        return folder, {(path, path.stat().st_mtime_ns) for path in tmp_path.glob("*/labels/*")}

    def change(name: str) -> None:
        checksum = code_checksums.checksum
        monkeypatch.setattr(
            code_checksums, "checksum", lambda path: checksum(path) + ("changed" if path.name == name else "")
        )

    first, labelled = train()
    change("report.py")  # which trains nothing
    assert train() == (first, labelled)
    change("training.py")
    second, kept = train()
    assert second != first and kept == labelled
    change("labels.py")
    third, anew = train()
    assert third not in (first, second) and anew > labelled
    assert files.sha256(third / part.LAYERS) == files.sha256(first / part.LAYERS)


def test_all_code_that_trains_counts() -> None:
    """Guards against a module that training begins to use and whose changes nobody notices."""
    used = code_checksums.Checkout(files.PACKAGE.parent).used("dynatree/distil/make.py")
    distil = {path.removeprefix("dynatree/") for path in used if path.startswith("dynatree/distil/")}
    counted = {*LABELLING, *TRAINING}
    # The recipe's values are told by themselves; what writes a part changes no weight.
    assert {path for path in counted if path.startswith("distil/")} == distil - {"distil/recipe.py", "distil/part.py"}


# Architecture and kind have nothing to do with each other there: each is in one of the two.
@pytest.mark.parametrize(
    ("target", "reads"), [("gpt_neox", False), ("qwen3", True)], indirect=["target"], ids=["plain", "reading"]
)
def test_a_killed_run_goes_on_to_the_same_weights(target: Path, tmp_path: Path, reads: bool) -> None:
    """Guards against a kill -9 that loses the training or changes its end: killed in each phase, then finished."""
    wanted, triggers = recipe(tokens=TOKENS), ("checkpoint.pt", "labels/00001.safetensors")
    if reads:
        wanted, triggers = reading_recipe(labels={**reading_recipe().labels.model_dump(), "passes": 8}), triggers[::-1]
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def started() -> multiprocessing.process.BaseProcess:
        process = PROCESSES.Process(target=trained, args=(target, killed, wanted))
        process.start()
        return process

    make(target, DATASETS, wanted, seed=0, work=whole)
    for trigger in triggers:
        process = started()
        deadline = time.monotonic() + 60
        while not list(killed.glob(f"*/{trigger}")) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert not list(killed.glob(f"*/part/{part.RECORD}"))
    process = started()
    process.join()
    assert process.exitcode == 0
    (one,), (other,) = (list(work.glob(f"*/part/{part.LAYERS}")) for work in (killed, whole))
    assert files.sha256(one) == files.sha256(other)


def test_a_part_of_another_recipe_or_of_evaluation_text_is_refused(made: Path) -> None:
    """Guards against a drafter that is measured on what it was trained on, and against keys that change nothing."""
    record = part.read_record(made)
    part.check(made, Recipe(**record["recipe"]), DATASETS)
    with pytest.raises(UserError, match=r"trained with vocabulary .*, the parameters say 11; distil\.retrain"):
        part.check(made, Recipe(**{**record["recipe"], "vocabulary": 11}), DATASETS)
    name = next(iter(record["data"]))
    moved = [replace(document, split=EVALUATION) for document in DATASETS[name]]
    with pytest.raises(UserError, match=f"of {name}, which is evaluation text"):
        part.check(made, Recipe(**record["recipe"]), {**DATASETS, name: moved})
