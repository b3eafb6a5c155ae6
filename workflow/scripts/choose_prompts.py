"""Choose prompts among the tokenised evaluation documents of a data set."""

import argparse
from pathlib import Path

from dynatree.data.documents import write_table
from dynatree.data.prompts import choose, prompts_table
from dynatree.data.splits import read_tokens
from dynatree.errors import reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, required=True, help="Parquet of tokenised documents")
    parser.add_argument("--dataset", required=True, help="name that prompt ids begin with")
    parser.add_argument("--start", choices=["body", "interior"], required=True, help="where prompts begin")
    parser.add_argument("--prompts", type=int, required=True, help="how many")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--reserve-tokens", type=int, required=True, help="text that must follow a prompt")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="Parquet of prompts to write")
    a = parser.parse_args()
    with reported():
        documents = read_tokens(a.tokens)
        prompts = choose(documents, a.dataset, a.prompts, a.prompt_tokens, a.reserve_tokens, a.seed, a.start)
        write_table(a.out, prompts_table(prompts))


if __name__ == "__main__":
    main()
