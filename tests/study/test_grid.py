"""From parameters to run folders: no two runs share one."""

from typing import Any

import pytest
import yaml

from dynatree.study import grid, params
from dynatree.study.sections import Params

RAW = yaml.safe_load(params.default_path().read_text(encoding="utf-8"))


def changed(**sections: Any) -> Params:
    scales = {
        name: {**sizes, "experiments": {"default": {"prompts": 8, "output_tokens": 8}}, "leaves_out": []}
        for name, sizes in RAW["scales"].items()
    }
    return params.check({**RAW, "scales": scales, **sections})


def test_every_run_has_its_own_folder() -> None:
    """Guards against runs that overwrite one another."""
    known = params.check(RAW)
    runs = grid.expand(known)
    beside = sum(
        len(list(grid.methods(known, title)))
        * len(experiment.datasets)
        * max(1, len(experiment.prompt_tokens) + len(known.sizes.of(title).prompt_tokens))
        * max(1, len(experiment.batches))
        * max(1, len(experiment.dtypes))
        for title, experiment in known.experiments.items()
    )
    assert len(runs) == len(known.methods) * len(known.datasets) + beside
    assert all(run.folder == folder for folder, run in runs.items())
    passes = grid.passes(known)
    assert len(passes) == len(known.timeline) + len(known.memory)
    assert not set(passes) & set(runs)


@pytest.mark.parametrize(("scale", "context"), [("laptop", 8192), ("study", 8192), ("paper", 2048)])
def test_every_scale_fits_the_models_that_it_is_for(scale: str, context: int) -> None:
    """Guards against a length beyond the context of SmolLM2, or of Pythia: a night's work, refused in its middle."""
    known = params.check({**RAW, "scale": scale})
    for run in grid.expand(known).values():
        assert (run.prompt_tokens or known.sizes.prompt_tokens) + run.output_tokens <= context, run.folder


def test_a_scale_leaves_experiments_out_with_their_figures() -> None:
    """Guards against a figure that is asked for, and whose runs nobody makes."""
    laptop = {**RAW["scales"]["laptop"], "leaves_out": ["precision", "penalised"]}
    known = params.check({**RAW, "scales": {**RAW["scales"], "laptop": laptop}})
    assert {*RAW["experiments"]} - {*known.experiments} == {"precision", "penalised"}
    assert {*RAW["figures"]} - {*known.figures} == {"precision"}
    assert not {run.top for run in grid.expand(known).values()} & {"precision", "penalised"}


def test_a_scale_adds_lengths_of_its_own() -> None:
    """Guards against a length that only one scale can afford, or none."""
    lengths = {
        scale: {
            run.prompt_tokens
            for run in grid.expand(params.check({**RAW, "scale": scale})).values()
            if run.top == "prompt_length"
        }
        for scale in ("laptop", "paper")
    }
    assert lengths["paper"] - lengths["laptop"] == {100, 500} and lengths["paper"] > lengths["laptop"]


def test_headline_and_experiments_have_their_own_sizes() -> None:
    """Guards against an experiment of the headline's length, or the other way round."""
    known = params.check(RAW)
    for run in grid.expand(known).values():
        size = known.sizes if run.top == "runs" else known.sizes.of(run.top)
        assert (run.prompts, run.output_tokens) == (size.prompts, size.output_tokens)
    for run in grid.passes(known).values():
        tokens = {"timeline": known.sizes.timeline_tokens, "memory": known.sizes.output_tokens}[run.top]
        assert (run.prompts, run.output_tokens) == (1, tokens)


def test_a_run_reads_where_its_method_does_and_the_pair_can() -> None:
    """Guards against a method that drafts by another drafter than params.yaml says, and a pair that must have both."""
    methods = RAW["methods"] | {"dynatree": {**RAW["methods"]["dynatree"], "reads": True}}
    methods["dynatree_threshold"] = {**RAW["methods"]["dynatree_threshold"], "reads": True}
    also = {"tokens": {"like": "dynatree", "reads": False}, "states": {"like": "linear", "reads": True}}
    own = {"mine": {"decoder": "speculative", "policy": "chain", "draft_tokens": 1, "reads": True}}
    usual = ["autoregressive", "linear", "dynatree"]
    experiment = {"datasets": ["wikipedia"], "methods": usual, "also": also | own}
    experiment["settings"] = {"dynatree_threshold": ["D3_B2_tau0.03_N64"]}
    for pair, reading in (("smollm2", {"dynatree", "states", "mine", "dynatree_threshold"}), ("pythia-2.8b", set())):
        found = grid.expand(changed(pair=pair, methods=methods, experiments={"who": experiment})).values()
        here = [run for run in found if run.top == "who"]
        assert {run.method for run in here} == {*usual, *also, *own, "dynatree_threshold"}
        assert {run.method for run in here if run.reads} == reading
    # It is no knob: neither in a path nor told to the decoder.
    assert not [run for run in found if "reads" in dict(run.knobs) or "reads" in run.settings]


def test_conditions_stand_in_the_folder() -> None:
    """Guards against runs of several prompt lengths or batch sizes in one folder."""
    experiment = {
        "datasets": ["wikipedia"],
        "methods": ["autoregressive"],
        "prompt_tokens": [20, 40],
        "batches": [1, 2],
    }
    found = grid.expand(changed(experiments={"both": experiment}))
    both = {folder: run for folder, run in found.items() if run.top == "both"}
    assert list(both) == [
        f"both/autoregressive/default/{condition}/wikipedia" for condition in ("P20/b1", "P20/b2", "P40/b1", "P40/b2")
    ]
    assert [(run.prompt_tokens, run.batch, run.length) for run in both.values()] == [
        (20, 1, "P20"),
        (20, 2, "P20"),
        (40, 1, "P40"),
        (40, 2, "P40"),
    ]


def test_prompts_serve_every_run_of_their_length() -> None:
    """Guards against too few prompts for an experiment, or too little text behind them for its outputs."""
    known = params.check(RAW)
    prompts = grid.prompts(known)
    for run in {**grid.expand(known), **grid.passes(known)}.values():
        made = prompts[run.length, run.dataset]
        assert made.number >= run.prompts
        assert made.reserve >= run.output_tokens
        assert made.tokens == (run.prompt_tokens or known.sizes.prompt_tokens)


def test_a_changed_knob_is_another_folder() -> None:
    """Guards against results of old parameters being taken for new ones."""
    methods = {**RAW["methods"], "dynatree": {**RAW["methods"]["dynatree"], "depth": 5}}
    old, new = set(grid.expand(changed())), set(grid.expand(changed(methods=methods)))
    branch = RAW["methods"]["dynatree"]["branch"]
    assert {folder for folder in old - new if folder.startswith("runs/")} == {
        f"runs/dynatree/D63_B{branch}_tau0.01_N63/{dataset}" for dataset in RAW["datasets"]
    }
    assert {folder for folder in new - old if folder.startswith("runs/")} == {
        f"runs/dynatree/D5_B{branch}_tau0.01_N63/{dataset}" for dataset in RAW["datasets"]
    }


def test_a_scale_has_further_settings() -> None:
    """Guards against a large scale running the laptop's few settings, or the laptop all of a large one's."""
    counts = {}
    for scale in ("laptop", "paper"):
        found = grid.expand(params.check({**RAW, "scale": scale}))
        counts[scale] = sum(run.top == "tree_shape" and run.method == "dynatree_threshold" for run in found.values())
    usual = RAW["experiments"]["tree_shape"]["settings"]["dynatree_threshold"]
    more = RAW["scales"]["paper"]["experiments"]["tree_shape"]["settings"]["dynatree_threshold"]
    assert counts == {"laptop": len(usual), "paper": len(usual) + len(more)}
