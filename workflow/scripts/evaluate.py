"""Audit a run's outputs under the target: exactness, perplexity, repetition; a flip above the tolerance fails."""

import argparse
from pathlib import Path

from dynatree import audit, files, model, provenance
from dynatree.errors import reported
from dynatree.text.prompts import read_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="model folder")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.parquet")
    parser.add_argument("--run", type=Path, required=True, help="run folder with outputs.jsonl; gets audit.jsonl")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="default: physical cores")
    a = parser.parse_args()
    with reported():
        provenance.set_threads(a.threads)
        target = model.load(a.target, a.dtype, a.device)
        prompts = {prompt.prompt_id: prompt.ids for prompt in read_prompts(a.prompts)}
        outputs = files.read_jsonl(a.run / files.OUTPUTS)
        eps = audit.tolerance(target, [prompts[outputs[0]["prompt_id"]]])
        rows = []
        for output in outputs:
            key = {"prompt_id": output["prompt_id"], "repeat": output["repeat"]}
            rows.append({**key, **audit.audit(target, prompts[output["prompt_id"]], output["output_ids"], eps)})
        files.write_jsonl(a.run / files.AUDIT, rows)


if __name__ == "__main__":
    main()
