"""From a target and tuning text to the trained part of a drafter, in a work folder that survives a kill."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynatree import code_checksums, files
from dynatree.data.splits import TUNING, SplitDocument
from dynatree.distil import context, labels, part
from dynatree.distil.dialogue import template
from dynatree.distil.recipe import Recipe
from dynatree.distil.student import add_fusion, shrink
from dynatree.distil.text import TrainingText, collect, cut, vocabulary_order
from dynatree.distil.training import Training, hidden_states
from dynatree.engine import checkpoint
from dynatree.engine.machine import describe_machine
from dynatree.engine.tokenizer import require_tokenizer
from dynatree.errors import UserError
from dynatree.version import __version__

# The code, below the package, that makes labels, and that trains on them: what another version of it left in a work
# folder is not taken up.
LABELLING = ("distil/dialogue.py", "distil/labels.py", "distil/text.py")
TRAINING = (
    "distil/context.py",
    "distil/make.py",
    "distil/student.py",
    "distil/training.py",
    "distil/unrolled.py",
    "engine/context.py",
    "engine/fusion.py",
    "engine/successors.py",
)
_WATCHED_ROWS, _WATCHED_TOKENS = 16, 32


def make(
    target_folder: Path,
    datasets: Mapping[str, Sequence[SplitDocument]],
    recipe: Recipe,
    *,
    seed: int,
    work: Path,
    device: str = "cpu",
    start: Path | None = None,
    command: str = "",
    checkpoint_steps: int = 200,
) -> Path:
    """Train a drafter for the target on the tuning documents of `datasets`; the folder of its trained part (part.py).

    With `start`, a trained part, training begins with its weights and its draft vocabulary; another `seed` than the
    part's gives it other text and labels.

    A run that was stopped, even killed, goes on in the same `work` folder and ends with the same weights; each recipe,
    seed, target, text, start and version of the code has its own folder in there. Labels lie apart: they depend neither
    on the start nor on the code that trains. Raises UserError for an unknown architecture, missing layers, too little
    text, or a start of another target, other layers, states or another size of vocabulary.
    """
    _, place = checkpoint.resolve(recipe.dtype, device)
    text = collect(datasets, recipe.mix, recipe.held_out_share, seed)
    target = checkpoint.read(target_folder, torch.float32).eval()
    reads = _labelled_with(recipe, target)
    chat = template(require_tokenizer(target_folder)) if recipe.labels and recipe.labels.dialogue_share else None
    identity: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "target": {"sha256": part.values_sha256(target)},
        "data": _describe(text),
        "code": {"labels": _code(LABELLING)},
    }
    of_labels = dict(identity)
    identity["code"] = {**identity["code"], "training": _code(TRAINING)}
    if start is not None:
        identity["start"] = part.check_start(start, recipe, identity["target"]["sha256"])
    own = _own_folder(work, identity)
    drafter: Any = shrink(target, recipe.layers, recipe.norm_scale)
    if recipe.reads:
        add_fusion(drafter, target, recipe.reads)
    drafter.to(place)
    order = vocabulary_order(text, target.get_input_embeddings().weight.shape[0], recipe.order_prior)
    if start is not None:
        order = part.load_start(start, drafter, order)
    asked = recipe.labels.context if recipe.labels else None
    # As it is, and not as it is rounded for the teacher; nobody else wants a copy of it.
    embedding = target.get_input_embeddings().weight.detach().float().cpu().clone() if asked else None
    teacher = target.to(place, getattr(torch, recipe.dtype))
    watch = _watch(teacher, drafter, text, recipe, order, seed)
    training = Training(drafter, recipe, text, order, own, seed, watch, checkpoint_steps, start is None)
    training.on_text()
    labelled, labelling, table = 0, 0.0, None
    in_context: dict[str, Any] = {}
    if recipe.labels:
        folder = _own_folder(work, of_labels) / "labels"
        shards = labels.write_shards(teacher, text, recipe.labels, recipe.length, folder, seed, reads, chat)
        training.on_labels(shards)
        if recipe.labels.successors:
            table = labels.successors_of(shards, len(order), recipe.labels.successors)
            if asked and embedding is not None:
                learning = context.Training(asked, table, embedding, shards, own, seed)
                table = table._replace(context=learning.run())
                generator = torch.Generator().manual_seed(seed + 7)
                rows = _held_out(teacher, text, recipe.length, reads, generator)
                agreement = {name: context.agreement(table, embedding, held) for name, held in rows.items()}
                in_context = {"seconds": round(learning.seconds), "steps": learning.step, **agreement}
        labelled, labelling = map(sum, zip(*map(labels.measure, shards), strict=True))
    record = {
        **identity,
        "command": command,
        "tokens": {"trained": training.tokens, "labelled": labelled},
        "seconds": {"training": round(training.seconds), "labelling": round(labelling)},
        "agreement": training.curve[-1],
        "curve": training.curve,
        **({"context": in_context} if in_context else {}),
        "versions": {"dynatree": __version__, **describe_machine(recipe.dtype, device)},
    }
    part.write(drafter, order[: recipe.vocabulary].tolist(), record, own / "part", table)
    return own / "part"


def _labelled_with(recipe: Recipe, target: PreTrainedModel) -> tuple[int, ...]:
    """The layers whose states go into the shards. Raises UserError where a context would not have the last."""
    last = (target.config.num_hidden_layers,)
    in_context = recipe.labels is not None and recipe.labels.context is not None
    if in_context and recipe.reads and recipe.reads[-1:] != last:
        raise UserError(
            f"reads: {list(recipe.reads)}; labels.context reads what is behind the target's last layer, {last[0]}; "
            "let that be the last of them"
        )
    return recipe.reads or (last if in_context else ())


def _held_out(
    teacher: PreTrainedModel, text: TrainingText, length: int, reads: Sequence[int], generator: torch.Generator
) -> dict[str, dict[str, Tensor]]:
    """By data set labelled rows of what is only measured on."""
    rows = {
        name: cut({name: ids}, {name: 1.0}, _WATCHED_ROWS // 2, length, generator)
        for name, ids in text.held_out.items()
    }
    return {name: labels.score(teacher, tokens, 1, reads) for name, tokens in rows.items()}


def _describe(text: TrainingText) -> dict[str, Any]:
    """Of each data set: the split, the documents trained on and held out, the hash of their tokens."""
    found = {}
    for name, documents in text.documents.items():
        tokens = torch.cat([text.training[name], text.held_out[name]]).numpy().tobytes()
        found[name] = {"split": TUNING, **documents, "sha256": hashlib.sha256(tokens).hexdigest()}
    return found


def _code(paths: Sequence[str]) -> str:
    """SHA-256 of these files of the package, without comments and docstrings."""
    return hashlib.sha256("".join(code_checksums.checksum(files.PACKAGE / path) for path in paths).encode()).hexdigest()


def _own_folder(work: Path, identity: dict[str, Any]) -> Path:
    """The folder below `work` for exactly this training, or these labels; `identity.json` in it says which."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    files.write_json(work / digest[:12] / "identity.json", identity)
    return work / digest[:12]


def _watch(
    teacher: PreTrainedModel, drafter: PreTrainedModel, text: TrainingText, recipe: Recipe, order: Tensor, seed: int
) -> Callable[[], dict[str, float]]:
    """A function that measures top-1 and top-3 agreement on held-out tuning text and on continuations of it."""
    generator = torch.Generator().manual_seed(seed + 7)
    held = {name: (rows, 0) for name, rows in _held_out(teacher, text, recipe.length, recipe.reads, generator).items()}
    prompts = cut(text.held_out, text.weights, _WATCHED_ROWS, recipe.length // 2, generator)
    greedy = torch.zeros(_WATCHED_ROWS)
    written = labels.continuations(teacher, prompts, _WATCHED_TOKENS, greedy, 1, generator, recipe.reads)
    held["continuations"] = written, recipe.length // 2 - 1
    frequent = order[: recipe.vocabulary].to(teacher.device)

    @torch.inference_mode()
    def watch() -> dict[str, float]:
        training = drafter.training
        drafter.eval()
        found = {}
        rows_of_head = drafter.get_output_embeddings().weight[frequent]
        for name, (rows, first) in held.items():
            for level, (start, hidden) in enumerate(hidden_states(drafter, rows, recipe.levels), 1):
                hidden = hidden[:, max(0, first - start) :].flatten(0, 1)
                best = frequent[(hidden @ rows_of_head.T).topk(3, dim=-1).indices].cpu()
                hits = best == rows["ids"][:, max(first, start) :, 0].flatten()[:, None]
                of = name if level == 1 else f"{name}_level{level}"
                found[f"{of}_top1"] = round(hits[:, 0].float().mean().item(), 4)
                found[f"{of}_top3"] = round(hits.any(-1).float().mean().item(), 4)
        drafter.train(training)
        return found

    return watch
