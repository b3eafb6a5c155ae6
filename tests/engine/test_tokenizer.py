"""Text and token ids are the same whether or not transformers stands between."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynatree.data.model_sources import byte_tokenizer
from dynatree.engine.tokenizer import load_tokenizer, require_tokenizer, text_tokenizer
from dynatree.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(home)
    return home


@given(text=st.text() | st.just("a <end>  b .\r\n don 't"))
def test_the_tokenizer_without_torch_is_transformers_own(folder: Path, text: str) -> None:
    """Guards against prompts in other tokens than the model's, and against texts cleaned up or stripped of tokens."""
    theirs, ours = require_tokenizer(folder), text_tokenizer(folder)
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    """Guards against a traceback of a library that looks for a file."""
    assert load_tokenizer(tmp_path) is None
    for read in (require_tokenizer, text_tokenizer):
        with pytest.raises(UserError, match=f"{tmp_path}.* has no tokenizer"):
            read(tmp_path)
