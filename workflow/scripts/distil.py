"""Train a drafter from a target's own layers on the tuning text; write a model folder, the record in its manifest."""

import argparse
import json
from pathlib import Path

import torch

from dynatree import distil, model, options, provenance, weights
from dynatree.errors import reported
from dynatree.text.splits import read_tokens
from dynatree.tokenizer import require_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="model folder")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="tokens.parquet of each data set")
    parser.add_argument("--source", required=True, help="JSON object: kind distil and its keys, as in params.yaml")
    parser.add_argument("--seed", type=int, required=True)
    options.threads(parser)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    a = parser.parse_args()
    with reported():
        recipe = weights.parse(json.loads(a.source))
        provenance.set_threads(a.threads)
        target = model.read(a.target)
        documents = [document for path in a.tokens for document in read_tokens(path)]
        text = {
            split: torch.tensor([token for d in documents if d.split == split for token in d.ids])
            for split in ("tuning", "evaluation")
        }
        distil.check_text(text["evaluation"], recipe.length, "evaluation")
        drafter = distil.shrink(target, recipe.layers, recipe.norm_scale)
        keys = ("tokens", "batch", "length", "learning_rate", "vocabulary", "negatives", "repeat_share")
        curve = distil.train(drafter, text["tuning"], seed=a.seed, **{key: getattr(recipe, key) for key in keys})
        held_out = distil.agreement(drafter, target, text["evaluation"][: 8 * recipe.length], recipe.length)
        record = {"seed": a.seed, "trained_on": "tuning split", "curve": curve, "agreement": held_out}
        weights.save(drafter, require_tokenizer(a.target), a.out, {**recipe.model_dump(mode="json"), **record})


if __name__ == "__main__":
    main()
