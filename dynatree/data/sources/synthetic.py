"""Made-up text: sentences drawn by seed from a small vocabulary, some of them repeated. For trying the machinery."""

import random
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from dynatree.config import Knobs
from dynatree.data.documents import Document

_NOUNS = ("river", "tree", "bridge", "letter", "garden", "clock", "stone", "boat", "window", "lamp")
_VERBS = ("keeps", "finds", "carries", "follows", "opens", "leaves", "meets", "holds")
_PLACES = ("by the mill", "at noon", "behind the wall", "in the valley", "before the rain", "on the hill")


class Parameters(Knobs):
    """How many documents, of how many sentences each."""

    documents: int = Field(ge=2)  # how many
    sentences: int = Field(ge=1)  # of each document


def documents(source: Parameters, cache: Path) -> Iterator[Document]:
    """The documents, always the same for the same `source`; `cache` is not used."""
    for number in range(source.documents):
        draw = random.Random(number)
        sentences: list[str] = []
        for _ in range(source.sentences):
            if sentences and draw.random() < 0.2:
                sentences.append(draw.choice(sentences))
            else:
                subject, thing = draw.sample(_NOUNS, 2)
                sentences.append(f"The {subject} {draw.choice(_VERBS)} the {thing} {draw.choice(_PLACES)}.")
        yield Document(id=f"synthetic-{number}", title=f"Document {number}", text=" ".join(sentences))
