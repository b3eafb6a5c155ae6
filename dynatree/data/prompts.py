"""Choose prompts among tokenised evaluation documents, by seed, and keep them as Parquet."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from dynatree.data.documents import read_table
from dynatree.data.splits import EVALUATION, TUNING, SplitDocument, uniform
from dynatree.errors import UserError

_PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("document_id", pa.string()),
        ("dataset", pa.string()),
        ("title", pa.string()),
        ("split", pa.string()),
        ("origin", pa.string()),
        ("first_token", pa.int64()),
        ("ids", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """`ids` stand at `first_token` of the document; `prompt_id` is `<dataset>/<document id>/<first token>`."""

    prompt_id: str
    document_id: str
    dataset: str
    title: str
    split: str
    origin: str
    first_token: int
    ids: list[int]


def choose(
    documents: Sequence[SplitDocument],
    dataset: str,
    count: int,
    prompt_tokens: int,
    reserve_tokens: int,
    seed: int,
    start: Literal["body", "interior"],
    split: str = EVALUATION,
) -> list[Prompt]:
    """`count` prompts of `prompt_tokens` tokens from documents of `split`; the first k do not depend on `count`.

    `body`: a prompt starts at the body's first token, a document's later prompts right behind its earlier ones.
    `interior`: at a seeded offset between 10 % and 90 % of the document. After each prompt the document has at least
    `reserve_tokens` more tokens. Every document long enough is used before one is used again; prompts of a document
    do not overlap. Raises UserError, with the number that there is, if there are not enough.
    """
    if min(count, prompt_tokens) < 1 or reserve_tokens < 0:
        raise UserError(
            f"prompts: got count {count}, {prompt_tokens} tokens, {reserve_tokens} reserved; need at least 1"
        )
    if start not in ("body", "interior"):
        raise UserError(f"start: got {start!r}; choose one of body, interior")
    if split not in (TUNING, EVALUATION):
        raise UserError(f"split: got {split!r}; choose one of {TUNING}, {EVALUATION}")
    usable = [d for d in documents if d.split == split and len(d.ids) >= prompt_tokens + reserve_tokens]
    usable.sort(key=lambda document: (uniform("order", seed, document.document_id), document.document_id))
    offsets = [_offsets(document, prompt_tokens, reserve_tokens, seed, start) for document in usable]
    prompts = [
        _prompt(dataset, document, places[turn], prompt_tokens)
        for turn in range(max(map(len, offsets), default=0))
        for document, places in zip(usable, offsets, strict=True)
        if turn < len(places)
    ]
    if len(prompts) < count:
        raise UserError(
            f"{dataset}: {count} prompts of {prompt_tokens} tokens (+ {reserve_tokens} reserved) asked for, "
            f"the {split} documents hold {len(prompts)}, from {len(usable)} documents; ask for fewer or shorter ones"
        )
    return prompts[:count]


def _offsets(document: SplitDocument, prompt_tokens: int, reserve_tokens: int, seed: int, start: str) -> list[int]:
    """First tokens of all prompts of one document, in the order of their use."""
    last = len(document.ids) - prompt_tokens - reserve_tokens
    if start == "body":
        return list(range(0, last + 1, prompt_tokens))
    low, high = -(-len(document.ids) // 10), min(last, len(document.ids) * 9 // 10)
    if high < low:
        return []
    # Places prompt_tokens apart around one seeded offset: they fill the interior and never overlap.
    first = low + int(uniform("offset", seed, document.document_id) * (high - low + 1))
    others = [
        *range(first - prompt_tokens, low - 1, -prompt_tokens),
        *range(first + prompt_tokens, high + 1, prompt_tokens),
    ]
    others.sort(key=lambda place: uniform("place", seed, document.document_id, place))
    return [first, *others]


def _prompt(dataset: str, document: SplitDocument, first: int, prompt_tokens: int) -> Prompt:
    return Prompt(
        prompt_id=f"{dataset}/{document.document_id}/{first}",
        document_id=document.document_id,
        dataset=dataset,
        title=document.title,
        split=document.split,
        origin=document.origin,
        first_token=first,
        ids=document.ids[first : first + prompt_tokens],
    )


def prompts_table(prompts: Sequence[Prompt]) -> pa.Table:
    """Prompts as a table, one row each; write it with `documents.write_table`."""
    return pa.Table.from_pylist([asdict(prompt) for prompt in prompts], schema=_PROMPTS)


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a Parquet file that holds a `prompts_table`."""
    return [Prompt(**row) for row in read_table(path, _PROMPTS)]
