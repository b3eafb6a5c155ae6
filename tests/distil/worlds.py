"""A target that writes text of its own kind, documents to train on, and a recipe that takes a second."""

from pathlib import Path
from typing import Any

import torch

from dynatree.data import model_sources
from dynatree.data.splits import SplitDocument
from dynatree.distil.make import make
from dynatree.distil.recipe import Recipe
from tests import models

LENGTH = 16


def documents(kind: str, count: int = 6, length: int = 400) -> list[SplitDocument]:
    """Looping texts, so that there is something to learn; the last is of the evaluation split."""
    return [
        SplitDocument(
            f"{kind}-{number}",
            "",
            "evaluation" if number == count - 1 else "tuning",
            "document",
            [(7 * place + number) % 30 if number < count - 1 else 31 + place % 29 for place in range(length)],
        )
        for number in range(count)
    ]


DATASETS = {"articles": documents("article"), "books": documents("book", 5)}


def recipe(**changes: Any) -> Recipe:
    """Some steps on text, some on labels."""
    labels = {
        "tokens": 700,
        "top": 5,
        "successors": 4,
        "context": {"width": 8, "rank": 4, "passes": 2},
        "rows": 4,
        "prompt_tokens": 8,
        "new_tokens": 8,
        "text_share": 0.5,
    }
    keys: dict[str, Any] = {"layers": [0], "norm_scale": 0.5, "vocabulary": 40, "negatives": 4}
    keys |= {"tokens": 640, "labels": labels, "batch": 4, "length": LENGTH, "learning_rate": 5e-3, "repeat_share": 0.25}
    return Recipe(**{**keys, **changes})


def trained(target: Path, work: Path, wanted: Recipe) -> None:
    """A part made of `target` in a process of its own, with checkpoints every few steps."""
    torch.set_num_threads(1)
    make(target, DATASETS, wanted, seed=0, work=work, checkpoint_steps=5)


def reading_recipe(**changes: Any) -> Recipe:
    """Labels alone, with the target's states."""
    labels = {**recipe().labels.model_dump(), "penalties": [1.0, 1.2]}
    return recipe(**{"reads": [1, 2], "levels": 2, "tokens": 0, "labels": labels, **changes})


def target_folder(folder: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """A random target as a model folder, with a tokenizer."""
    tokenizer = model_sources.byte_tokenizer()
    model = models.random_model(
        architecture, seed, torch.float32, tie_word_embeddings=architecture == "llama", vocab_size=len(tokenizer)
    )
    model_sources.save(model, tokenizer, folder, {})
    return folder
