"""Random prompts without end through the audit, on the real pair: DYNATREE_SOAK of them, a hundred if it is not set."""

import os
import random

import pytest

from dynatree.costs.calibration import COSTS, STEPS
from dynatree.data.splits import read_tokens
from dynatree.engine.machine import set_threads
from dynatree.files import drafter_of
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import audit, loading
from dynatree.study import params
from tests.drills.transcript import Transcript
from tests.workflow.world import ROOT, World

COUNT = int(os.environ.get("DYNATREE_SOAK", "100"))
TOKENS, LONGEST = 24, 300
EVERY = 25


def test_random_prompts_are_exact() -> None:
    """Guards against an output off the target's argmax on prompts that nobody chose: spans of text, and random ids."""
    known = params.read(ROOT / "params.yaml")
    names = {"target": known.pair, "drafter": drafter_of(known.pair)}
    folders = {role: ROOT / "models" / name for role, name in names.items()}
    calibration = ROOT / "results/calibration" / known.dtype
    tokens = [ROOT / f"data/tokens/{known.pair}/{name}.parquet" for name in known.datasets]
    needed = [*(folder / "manifest.json" for folder in folders.values()), *tokens]
    needed += [calibration / COSTS, calibration / STEPS]
    if lacking := [path.relative_to(ROOT).as_posix() for path in needed if not path.is_file()]:
        pytest.skip(f"run `make all` first: no {', '.join(lacking)}")
    set_threads(known.threads)
    method = known.methods["dynatree"]
    (target, _), decoder = loading.load(folders, calibration, method.decoder, method.knobs, known.dtype, known.device)
    documents = [document for path in tokens for document in read_tokens(path) if document.ids]
    tolerance, chance = audit.tolerance(target, documents), random.Random(known.seed)
    page = Transcript(
        World(ROOT),
        "Random prompts through the audit",
        f"DynaTree on {known.pair}: {COUNT} prompts of 1 to {LONGEST} tokens, every second one a span of the data sets"
        f"' text, the others random token ids; {TOKENS} tokens each. Every output is teacher-forced through the target:"
        f" a token more than {tolerance:.0e} logits below the argmax ends the drill.",
    )
    flips, largest, outputs, rounds = 0, 0.0, {}, 0
    options = GenerationOptions(max_new_tokens=TOKENS)
    prompts = []
    for number in range(COUNT):
        length = chance.randint(1, LONGEST)
        if number % 2:
            prompts.append([chance.randrange(target.vocabulary_size) for _ in range(length)])
        else:
            ids = chance.choice(documents).ids
            start = chance.randrange(max(1, len(ids) - length))
            prompts.append(ids[start : start + length])
    for number, prompt in enumerate(prompts, 1):
        trace = decoder.decode(prompt, options)
        facts = audit.audit(target, prompt, trace.output, tolerance)
        flips, largest = flips + facts["flips"], max(largest, facts["largest_gap"])
        outputs[number], rounds = trace.output, rounds + len(trace.rounds)
        if number % EVERY == 0:
            print(f"soak: {number} of {COUNT}, {flips} flips, largest gap {largest:.2g}", flush=True)
    again = chance.sample(range(1, COUNT + 1), min(20, COUNT))
    assert all(decoder.decode(prompts[number - 1], options).output == outputs[number] for number in again)
    page.note(
        f"DYNATREE_SOAK={COUNT} python -m pytest tests/drills/drill_soak.py",
        f"{COUNT} outputs of {TOKENS} tokens in {rounds} rounds: {flips} tokens besides the argmax, none of them"
        f" further from it than rounding explains; largest gap {largest:.2g} logits\n"
        f"{len(again)} of the prompts again, in another order: the same outputs",
        ".",
    )
    page.write("soak")
