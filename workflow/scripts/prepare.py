"""Tokenise documents, split them into tuning and evaluation, choose prompts."""

import argparse
from pathlib import Path

from dynatree.errors import UserError, reported
from dynatree.model import load_tokenizer
from dynatree.text.documents import TokenisedDocument, read_documents, write_table, write_tokens
from dynatree.text.prompts import choose, prompts_table, split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--dataset", required=True, help="name that prompt ids begin with")
    parser.add_argument("--model", type=Path, required=True, help="model folder with the tokenizer")
    parser.add_argument("--evaluation-share", type=float, required=True, help="of the documents")
    parser.add_argument("--start", choices=["body", "interior"], required=True, help="where prompts begin")
    parser.add_argument("--prompts", type=int, required=True, help="how many")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--reserve-tokens", type=int, required=True, help="text that must follow a prompt")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for tokens.parquet and prompts.parquet")
    a = parser.parse_args()
    with reported():
        tokenizer = load_tokenizer(a.model)
        if tokenizer is None:
            raise UserError(f"model folder {str(a.model)!r} has no tokenizer")
        documents = split(
            read_documents(a.documents),
            a.evaluation_share,
            a.seed,
            lambda t: tokenizer.encode(t, add_special_tokens=False),
        )
        evaluation = [d for d in documents if d.split == "evaluation"]
        prompts = choose(evaluation, a.dataset, a.prompts, a.prompt_tokens, a.reserve_tokens, a.seed, a.start)
        write_tokens(a.out / "tokens.parquet", [TokenisedDocument(d.document_id, d.split, d.ids) for d in documents])
        write_table(a.out / "prompts.parquet", prompts_table(prompts))


if __name__ == "__main__":
    main()
