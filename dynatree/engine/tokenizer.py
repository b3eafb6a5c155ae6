"""The tokenizer of a model folder: transformers' for models, and the same one for text alone, without torch.

Knows no model and no text source.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from dynatree.errors import UserError, readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SERIALISED = "tokenizer.json"


def text_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder that this project wrote. Raises UserError if there is none."""
    path = folder / _SERIALISED
    if not path.is_file():
        raise UserError(f"model folder {str(folder)!r} has no {_SERIALISED}")
    with readable(str(path)):
        return Tokenizer.from_file(str(path))


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase | None":
    """transformers' tokenizer of any model folder; None if it has none."""
    from transformers import AutoTokenizer  # takes seconds, which who needs text alone should not wait

    if not any((folder / file).is_file() for file in (_SERIALISED, "tokenizer.model", "vocab.json")):
        return None
    # Prompts are cut by this project; transformers' warning about long texts would mislead.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    with readable(f"tokenizer of model folder {str(folder)!r}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def same_tokenizer(*folders: Path) -> bool:
    """Whether these model folders hold the same serialised tokenizer, byte by byte."""
    paths = [folder / _SERIALISED for folder in folders]
    return all(path.is_file() for path in paths) and len({path.read_bytes() for path in paths}) == 1


def require_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The same, for callers that cannot go on without. Raises UserError if there is none."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise UserError(f"model folder {str(folder)!r} has no tokenizer")
    return tokenizer
