"""Local folders laid out like the hub's repositories: a GPT-NeoX of Pythia's shape with random weights, and text."""

import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from dynatree import files
from dynatree.data.sources import synthetic

END = "<|endoftext|>"
PIECES, ROWS = 300, 320  # Pythia's embedding has more rows than its tokenizer has tokens


def pythia(folder: Path, layers: int, heads: int = 4) -> None:
    """A checkpoint in half precision, with the files that the hub has and no others.

    Equal names have equal weights, so that one with fewer layers drafts what one with more accepts now and then.
    """
    config = GPTNeoXConfig(
        vocab_size=ROWS,
        hidden_size=16 * heads,
        intermediate_size=64 * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                chance = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.normal_(0, 0.2, generator=chance)  # large enough that the argmax depends on the context
    model.half().save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), bos_token=END, eos_token=END, unk_token=END).save_pretrained(
        folder
    )
    (folder / "generation_config.json").unlink()


def _tokenizer() -> Tokenizer:
    """Byte-level pieces trained on the made-up text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=[END, "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((text for _, text in _texts(4, 40)), trainer)
    return raw


def wikitext(folder: Path) -> None:
    """Salesforce/wikitext: a line of the corpus a row, headings in equals signs, a configuration a folder."""
    lines = [""]
    for title, text in _texts(12, 40):
        half = len(text) // 2
        lines += [f" = {title} = \n", "", f" {text[:half]} \n", "", " = = History = = \n", "", f" {text[half:]} \n", ""]
    _rows(folder / "wikitext-2-raw-v1/test-00000-of-00001.parquet", {"text": lines})
    _card(folder, [{"config_name": "wikitext-2-raw-v1", "data_files": _split("wikitext-2-raw-v1/test-*")}])


def pg19(folder: Path) -> None:
    """emozilla/pg19-test: a book a row, its title and address beside it."""
    books = list(_texts(6, 120))
    columns = {
        "short_book_title": [title for title, _ in books],
        "publication_date": [1900] * len(books),
        "url": ["http://www.gutenberg.org/"] * len(books),
        "text": [text for _, text in books],
    }
    _rows(folder / "data/test-00000-of-00001.parquet", columns)
    _card(folder, [{"config_name": "default", "data_files": _split("data/test-*")}])


def _texts(documents: int, sentences: int) -> list[tuple[str, str]]:
    source = synthetic.Parameters(documents=documents, sentences=sentences)
    return [(document.title, document.text) for document in synthetic.documents(source, Path())]


def _split(path: str) -> list[dict[str, str]]:
    return [{"split": "test", "path": path}]


def _rows(path: Path, columns: dict[str, list[str] | list[int]]) -> None:
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.table(columns), path)


def _card(folder: Path, configurations: list[dict[str, object]]) -> None:
    """The README with the configurations, as `datasets` reads them."""
    files.write_text(folder / "README.md", f"---\nconfigs: {json.dumps(configurations)}\n---\n")
