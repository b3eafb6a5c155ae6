"""What dvc.yaml holds for people: what a stage does, what `dvc plots` shows, which files are models. For stages.py."""

from typing import Any

from dynatree.files import WEIGHTS, drafter_of, features_of
from dynatree.study import grid, sections
from dynatree.tables import headline

# What a stage does, by rule.
TOLD = {
    "library": "Take checksums of the code that each job runs",
    "library_of_source": "Take checksums of the code that reads a data set",
    "library_of_rules": "Take checksums of the rules",
    "download_data": "Fetch the documents of a data set",
    "download_model": "Fetch or build the target",
    "download_drafter": "Fetch or build the drafter",
    "distil": "Train the drafter from the target's own layers, or take its trained part",
    "distil_features": "The same of the drafter that reads the target's states",
    "tokenise": "Split the documents and tokenise them",
    "choose_prompts": "Choose prompts from the evaluation text",
    "drafter_report": "Measure how often the drafter agrees with its target",
    "calibrate": "Measure what forwards cost and how often drafted tokens are right",
    "calibrate_batches": "Measure what forwards of several requests at once cost",
    "perplexity": "Measure the perplexity of the text under the target",
    "generate": "Decode, timed, then audit the outputs",
    "timeline": "Decode one prompt with every phase timed",
    "memory": "Measure the peak memory of one request",
    "aggregate": "Make tables and metrics of the raw records",
    "draw": "Draw a figure from its tables",
    "draw_replay": "Draw the recorded rounds of one prompt, moving",
}


def plots(known: sections.Params) -> list[dict[str, Any]]:
    """What `dvc plots` shows: speedups, by knobs too where shapes of trees are compared, and every figure."""
    bars = {"title": "speedup over autoregressive decoding", "x": "speedup", "template": "bar_horizontal"}
    found: list[dict[str, Any]] = [{"speedup": {**bars, "y": {"results/plots/speedup.json": "run"}}}]
    if headline.SWEEP in known.experiments:
        for knob in headline.KNOBS:
            line = {"title": f"speedup by {knob} ({headline.SWEEP})", "x": knob, "template": "simple"}
            found.append({knob: {**line, "y": {f"results/plots/{knob}.json": "speedup"}}})
    return found + [{f"figures/{name}.svg": {}} for name in known.figures]


def artifacts(known: sections.Params) -> dict[str, Any]:
    """The models, as model registries list them."""
    models = {"target": ("${pair}", "The model that is sped up"), "drafter": (drafter_of("${pair}"), "Its draft model")}
    if any(run.reads for run in grid.expand(known).values()):
        models["features"] = features_of("${pair}"), "Its drafter that reads the target's states"
    return {
        role: {"path": f"models/{folder}/{WEIGHTS}", "type": "model", "desc": desc}
        for role, (folder, desc) in models.items()
    }
