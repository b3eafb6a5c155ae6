"""Tokenise documents and part them in tuning and evaluation, disjoint by document; keep them as Parquet.

Knows no source and no tokenizer: `encode` is any callable from text to token ids.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from dynatree.data.documents import Document, read_table, write_table
from dynatree.errors import UserError

TUNING, EVALUATION = "tuning", "evaluation"
_GAP_TOKENS = 64  # between the halves of a single document, so that no sentence is in both

_TOKENS = pa.schema(
    [
        ("document_id", pa.string()),
        ("title", pa.string()),
        ("split", pa.string()),
        ("origin", pa.string()),
        ("ids", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class SplitDocument:
    """A tokenised document with its split; `origin` is `document`, or says which half of a single document it is."""

    document_id: str
    title: str
    split: str
    origin: str
    ids: list[int]


def uniform(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56


def assign(documents: Sequence[Document], evaluation_share: float, seed: int) -> dict[str, str]:
    """Split of each document id, by a hash of (seed, id): independent of order and of the other documents.

    Raises UserError for a share outside 0..1 and for an id that occurs twice.
    """
    if not 0 < evaluation_share < 1:
        raise UserError(f"evaluation_share: got {evaluation_share}; expected a number between 0 and 1, both excluded")
    splits: dict[str, str] = {}
    for document in documents:
        if document.id in splits:
            raise UserError(f"document id {document.id!r} occurs twice; identifiers must be unique")
        splits[document.id] = EVALUATION if uniform("split", seed, document.id) < evaluation_share else TUNING
    return splits


def split(
    documents: Sequence[Document], evaluation_share: float, seed: int, encode: Callable[[str], list[int]]
) -> list[SplitDocument]:
    """Tokenise the documents and part them in `tuning` and `evaluation`, disjoint by document (see `assign`).

    If one side would be empty, the longest document is cut in two with a gap between: `<id>#tuning`, its first half,
    and `<id>#evaluation`; `origin` says so. Raises UserError without documents or if that one is too short to cut.
    """
    if not documents:
        raise UserError("no documents to split; expected at least one")
    splits = assign(documents, evaluation_share, seed)
    whole = [SplitDocument(d.id, d.title, splits[d.id], "document", encode(d.text)) for d in documents]
    if len(set(splits.values())) == 2:
        return whole
    longest = max(whole, key=lambda document: (len(document.ids), document.document_id))
    return [part for d in whole for part in (_halves(d) if d is longest else [d])]


def _halves(document: SplitDocument) -> list[SplitDocument]:
    count = len(document.ids)
    middle, gap = count // 2, min(_GAP_TOKENS, count // 10)
    if count < 4:
        raise UserError(f"document {document.document_id!r} is all there is and has {count} tokens: too short to halve")
    parts = ((TUNING, document.ids[: middle - gap // 2]), (EVALUATION, document.ids[middle + gap - gap // 2 :]))
    return [
        SplitDocument(
            f"{document.document_id}#{name}", document.title, name, f"half of {document.document_id}, gap {gap}", ids
        )
        for name, ids in parts
    ]


def write_tokens(path: str | Path, documents: Sequence[SplitDocument]) -> None:
    """Write tokenised documents as a Parquet table, one row each, in the order given."""
    write_table(path, pa.Table.from_pylist([asdict(document) for document in documents], schema=_TOKENS))


def read_tokens(path: str | Path) -> list[SplitDocument]:
    """The tokenised documents that `write_tokens` wrote."""
    return [SplitDocument(**row) for row in read_table(path, _TOKENS)]
