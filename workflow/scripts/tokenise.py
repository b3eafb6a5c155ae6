"""Tokenise documents and part them in tuning and evaluation."""

import argparse
from pathlib import Path

from dynatree.data.documents import read_documents
from dynatree.data.splits import split, write_tokens
from dynatree.engine.tokenizer import text_tokenizer
from dynatree.errors import reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, required=True, help="Parquet of documents")
    parser.add_argument("--model", type=Path, required=True, help="model folder with tokenizer.json")
    parser.add_argument("--evaluation-share", type=float, required=True, help="of the documents")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="Parquet of tokenised documents to write")
    a = parser.parse_args()
    with reported():
        tokenizer = text_tokenizer(a.model)
        documents = read_documents(a.documents)
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
        write_tokens(a.out, split(documents, a.evaluation_share, a.seed, encode))


if __name__ == "__main__":
    main()
