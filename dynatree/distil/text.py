"""Training text of a drafter: rows cut from tuning documents, by data set and weight. Never an evaluation document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynatree.data.splits import TUNING, SplitDocument, uniform
from dynatree.errors import UserError


@dataclass(frozen=True)
class TrainingText:
    """Tokens [n] of each data set, to train on and held out, and the documents that they come from."""

    training: dict[str, Tensor]
    held_out: dict[str, Tensor]
    documents: dict[str, dict[str, list[str]]]  # data set -> training, held_out -> document ids
    weights: dict[str, float]  # of the data sets, sum 1


def collect(
    datasets: Mapping[str, Sequence[SplitDocument]], mix: Mapping[str, float], held_out_share: float, seed: int
) -> TrainingText:
    """Part the tuning documents in training and held-out ones; other splits are left alone.

    Raises UserError if a data set has no two tuning documents.
    """
    training, held_out, documents = {}, {}, {}
    for name, all_documents in datasets.items():
        tuning = sorted(
            (d for d in all_documents if d.split == TUNING and d.ids),
            key=lambda d: uniform("held out", seed, d.document_id),
        )
        if len(tuning) < 2:
            raise UserError(f"distil: {name} has {len(tuning)} tuning documents; give at least 2, one is held out")
        count = max(1, round(held_out_share * len(tuning)))
        parts = {"held_out": tuning[:count], "training": tuning[count:]}
        held_out[name], training[name] = (
            torch.tensor([token for d in parts[part] for token in d.ids]) for part in ("held_out", "training")
        )
        documents[name] = {part: sorted(d.document_id for d in chosen) for part, chosen in parts.items()}
    weights = {name: float(mix.get(name, 1.0)) for name in datasets}
    total = sum(weights.values())
    if not total > 0:
        raise UserError("distil: every data set has weight 0 in mix; give one more")
    return TrainingText(training, held_out, documents, {name: weight / total for name, weight in weights.items()})


def vocabulary_order(text: TrainingText, size: int, prior: float) -> Tensor:
    """All `size` token ids, most frequent first, by weighted frequency on the training text.

    `prior` of the frequency is 1 / (100 + id): tokenizers number their merges by frequency on far more text.
    """
    frequency = torch.zeros(size, dtype=torch.float64)
    for name, ids in text.training.items():
        frequency += text.weights[name] * torch.bincount(ids, minlength=size) / len(ids)
    order = 1 / (100 + torch.arange(size, dtype=torch.float64))
    return (frequency * (1 - prior) + prior * order / order.sum()).argsort(descending=True, stable=True)


def cut(
    part: Mapping[str, Tensor], weights: Mapping[str, float], rows: int, length: int, generator: torch.Generator
) -> Tensor:
    """Rows [rows, length] cut at random, the data set of each drawn by weight. Raises UserError: text too short."""
    names = [name for name, weight in weights.items() if weight > 0]
    for name in names:
        if len(part[name]) < length:
            raise UserError(f"distil: the text of {name} has {len(part[name])} tokens; give at least {length}")
    chosen = torch.multinomial(torch.tensor([float(weights[name]) for name in names]), rows, True, generator=generator)
    found = []
    for index in chosen.tolist():
        ids = part[names[index]]
        start = int(torch.randint(len(ids) - length + 1, (1,), generator=generator))
        found.append(ids[start : start + length])
    return torch.stack(found)


def repeat_span(rows: Tensor, generator: torch.Generator) -> Tensor:
    """`rows` [n, length] with a random span copied behind itself, as looping text has it."""
    length = rows.shape[1]
    span = int(torch.randint(2, length // 2 + 1, (1,), generator=generator))
    begin = int(torch.randint(length - 2 * span + 1, (1,), generator=generator))
    rows = rows.clone()
    rows[:, begin + span : begin + 2 * span] = rows[:, begin : begin + span]
    return rows
