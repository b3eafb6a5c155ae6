"""What training gives apart from the target: layers in float16, draft vocabulary, table of successors, record; a
checkpoint with the target.

The embedding and the head are the target's own and are not kept, so a part is small, and good for one target only.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from dynatree import files
from dynatree.data import model_sources
from dynatree.data.splits import EVALUATION, SplitDocument
from dynatree.distil.recipe import Recipe
from dynatree.distil.student import add_fusion, load_trained_part, shrink, trained_part
from dynatree.engine import checkpoint, successors
from dynatree.engine.successors import Successors
from dynatree.engine.tokenizer import require_tokenizer
from dynatree.errors import UserError, readable

LAYERS, RECORD = "layers.safetensors", "record.json"


def values_sha256(target: PreTrainedModel) -> str:
    """SHA-256 over the values of all weights in float32, by name: the same for every file format and shard size."""
    digest = hashlib.sha256()
    for name, value in sorted(target.named_parameters()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write(
    drafter: PreTrainedModel,
    vocabulary: list[int],
    record: dict[str, Any],
    folder: Path,
    table: Successors | None = None,
) -> None:
    """Write a part; the record, which makes it one, last. `table`: what the target puts after each token."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    layers = {name: value.half().cpu().contiguous() for name, value in trained_part(drafter).items()}
    if not all(torch.isfinite(value).all() for value in layers.values()):
        raise UserError("distil: a trained weight does not fit float16; lower the learning rate")
    with files.replacing(folder / LAYERS) as temporary:
        save_file(layers, temporary)
        temporary.chmod(0o644)
    files.write_text(folder / files.DRAFT_VOCABULARY, f"{vocabulary}\n")
    (folder / files.SUCCESSORS).unlink(missing_ok=True)
    if table is not None:
        successors.save(table, folder / files.SUCCESSORS)
    files.write_json(folder / RECORD, record)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a part. Raises UserError if there is none."""
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: no {RECORD}; expected the trained part of a drafter")
    with readable(str(folder / RECORD)):
        record: dict[str, Any] = files.read_json(folder / RECORD)
        Recipe(**record["recipe"])
        str(record["target"]["sha256"])
    return record


def from_nothing(record: Mapping[str, Any]) -> Recipe:
    """The recipe that makes one like the part of this record with no other to begin with: of its first sitting.

    Its table is of the last one's labels, and so are their keys.
    """
    first = record
    while "start" in first:
        first = first["start"]
    recipe, last = dict(first["recipe"]), record["recipe"].get("labels") or {}
    if recipe.get("labels"):
        recipe["labels"] = recipe["labels"] | {key: last[key] for key in ("successors", "context") if key in last}
    return Recipe(**recipe)


def check(folder: Path, recipe: Recipe, datasets: Mapping[str, Sequence[SplitDocument]]) -> None:
    """Raise UserError if the part was trained by another recipe, or on what is evaluation text of `datasets` now.

    Of a part that went on from others the recipe is that `from_nothing`.
    """
    record, retrain = read_record(folder), "distil.retrain: true trains one afresh"
    asked, had = recipe.model_dump(), from_nothing(record).model_dump()
    if differing := [key for key in asked if asked[key] != had[key]]:
        key = differing[0]
        raise UserError(f"{folder}: trained with {key} {had[key]}, the parameters say {asked[key]}; {retrain}")
    if recipe.tabled and not (folder / files.SUCCESSORS).is_file():
        raise UserError(
            f"{folder}: no {files.SUCCESSORS}, which labels.successors asks for; write 0 there, or {retrain}"
        )
    for name, documents in datasets.items():
        data = record["data"].get(name, {})
        seen = {*data.get("training", []), *data.get("held_out", [])}
        if both := sorted(d.document_id for d in documents if d.split == EVALUATION and d.document_id in seen):
            raise UserError(
                f"{folder}: trained on {both[0]} of {name}, which is evaluation text with this seed and "
                f"evaluation_share; {retrain}"
            )


def check_start(folder: Path, recipe: Recipe, target_sha256: str) -> dict[str, Any]:
    """What a training that begins with the part records of it. Raises UserError if `recipe` makes another model."""
    record = read_record(folder)
    _check_target(folder, record, target_sha256, "the target")
    had = Recipe(**record["recipe"])
    for key in ("layers", "reads", "vocabulary"):
        asked, found = getattr(recipe, key), getattr(had, key)
        if asked != found:
            raise UserError(f"{folder}: trained with {key} {found}, the recipe says {asked}; begin with it unchanged")
    layers = hashlib.sha256((folder / LAYERS).read_bytes()).hexdigest()
    kept = ("recipe", "seed", "start", "tokens", "seconds", "agreement")
    return {"sha256": layers, **{key: record[key] for key in kept if key in record}}


def load_start(folder: Path, drafter: PreTrainedModel, order: Tensor) -> Tensor:
    """Put the part's weights into `drafter`; all tokens `order`, those of the part's draft vocabulary first."""
    _load(folder, drafter)
    drafted = _drafted(folder, len(order)).to(order.device)
    return torch.cat([drafted, order[~torch.isin(order, drafted)]])


def assemble(folder: Path, target_folder: Path, out: Path) -> None:
    """Write the drafter of the part in `folder` to `out`, a standard checkpoint with the target's embedding and head.

    The table of successors goes with it, if there is one.
    One that reads states gets `draft_reads` in its config and its fusion as a further file. Raises UserError if
    the part was trained for another target, or is damaged.
    """
    record = read_record(folder)
    target = checkpoint.read(target_folder, torch.float32)
    _check_target(folder, record, values_sha256(target), str(target_folder))
    recipe = Recipe(**record["recipe"])
    drafter: Any = shrink(target, recipe.layers, recipe.norm_scale)
    if recipe.reads:
        add_fusion(drafter, target, recipe.reads)
    _load(folder, drafter)
    size = len(target.get_input_embeddings().weight)
    vocabulary = _drafted(folder, size)
    table = successors.load(folder / files.SUCCESSORS, size)
    origin = {key: value for key, value in record.items() if key != "data"}
    # It was never trained behind more.
    drafter.config.draft_window = recipe.length
    fusion = None
    if recipe.reads:
        drafter.config.draft_reads = list(recipe.reads)
        # A file of its own, so that the rest is what transformers expects of the architecture.
        fusion = drafter.fusion
        del drafter.fusion
    tokenizer = require_tokenizer(target_folder)
    model_sources.save(drafter.eval(), tokenizer, out, origin, vocabulary.tolist(), fusion, table)


def _check_target(folder: Path, record: Mapping[str, Any], found: str, target: str) -> None:
    """Raise UserError unless the part was trained for the weights of this SHA-256, those of `target`."""
    wanted = record["target"]["sha256"]
    if found != wanted:
        raise UserError(
            f"{folder}: trained for another target (weights {wanted[:12]}…, {target} has {found[:12]}…); "
            "take that target, or train a drafter for this one (distil.retrain: true, or `dynatree distil`)"
        )


def _load(folder: Path, drafter: PreTrainedModel) -> None:
    with readable(f"{folder}: damaged part: {LAYERS}"):
        load_trained_part(drafter, load_file(folder / LAYERS))


def _drafted(folder: Path, size: int) -> Tensor:
    """The part's draft vocabulary, of a target with `size` tokens."""
    vocabulary = checkpoint.read_draft_vocabulary(folder)
    if vocabulary is None:
        raise UserError(f"{folder}: damaged part: no {files.DRAFT_VOCABULARY}")
    if int(vocabulary.min()) < 0 or int(vocabulary.max()) >= size:
        raise UserError(f"{folder}: damaged part: {files.DRAFT_VOCABULARY} has token ids that the target has not")
    return vocabulary
