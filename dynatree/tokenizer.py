"""The tokenizer of a model folder. Knows no model and no text source."""

import logging
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dynatree.errors import UserError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model folder; None if it has none."""
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    # Prompts are cut by this project; transformers' warning about long texts would mislead.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def require_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The same, for callers that cannot go on without. Raises UserError if there is none."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise UserError(f"model folder {str(folder)!r} has no tokenizer")
    return tokenizer
