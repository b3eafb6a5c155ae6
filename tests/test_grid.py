"""From parameters to run folders: what stands in a path can be read back, and no two runs share a folder."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dynatree import grid, params
from dynatree.errors import UserError

RAW = yaml.safe_load(params.default_path().read_text(encoding="utf-8"))
BASE = {"policy": "threshold", "drafting": "model", "depth": 8, "branch": 3, "threshold": 0.03, "budget": 64}

_NUMBERS = st.one_of(st.none(), st.integers(0, 2048), st.floats(0, 1, allow_nan=False))


def changed(**sections: Any) -> params.Params:
    return params.check({**RAW, **sections})


def test_settings_are_written_with_the_fields_symbols() -> None:
    """Guards the names of result folders: plug-ins' names are not knobs, and a method without knobs has a name too."""
    assert grid.settings(BASE) == "D8_B3_tau0.03_N64"
    assert grid.settings({**BASE, "threshold": None, "budget": None}) == "D8_B3_tauNone_NNone"
    assert grid.settings({}) == "default"


@given(st.dictionaries(st.sampled_from(sorted(grid.SYMBOLS)), _NUMBERS, min_size=1))
def test_settings_can_be_read_back(knobs: dict[str, Any]) -> None:
    """Guards against values that change on the way: None, exponents, and integers that become floats."""
    back = grid.parse_settings(grid.settings(knobs))
    assert back == knobs
    assert {knob: type(value) for knob, value in back.items()} == {knob: type(value) for knob, value in knobs.items()}


def test_settings_change_only_what_they_name() -> None:
    """Guards against losing the plug-ins' names, or the order that the path has."""
    assert grid.with_settings(BASE, "D4_B2_tauNone_N16") == {
        **BASE,
        "depth": 4,
        "branch": 2,
        "threshold": None,
        "budget": 16,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("D8_Q3", "cannot read 'Q3'"),
        ("D", "cannot read 'D'"),
        ("D8_B3_tau0.03_Nmany", "cannot read 'Nmany'"),
        ("D8__B3", "cannot read ''"),
        ("D8_K3", "the method has no K"),
        ("D8", "write it as D8_B3_tau0.03_N64"),
        ("B3_D8_tau0.03_N64", "write it as D8_B3_tau0.03_N64"),
        ("D8_B3_tau0.030_N64", "write it as D8_B3_tau0.03_N64"),
        ("D4_D8_B3_tau0.03_N64", "write it as D8_B3_tau0.03_N64"),
    ],
)
def test_settings_that_are_not_a_folder_name_are_refused(text: str, said: str) -> None:
    """Guards against two spellings of one run, which would be measured twice."""
    with pytest.raises(UserError, match=said):
        grid.with_settings(BASE, text)


def test_every_run_has_its_own_folder() -> None:
    """Guards against runs that overwrite one another."""
    known = params.check(RAW)
    runs = grid.expand(known)
    swept = len(known.sweep.settings) + 1 + len(known.penalised.methods)
    assert len(runs) == len(known.methods) * len(known.datasets) + swept
    assert all(run.folder == folder for folder, run in runs.items())
    passes = grid.timeline(known)
    assert len(passes) == len(known.timeline)
    assert not set(passes) & set(runs)


def test_headline_and_sweep_have_their_own_sizes() -> None:
    """Guards against a sweep of the headline's length, or the other way round."""
    known = params.check(RAW)
    for run in grid.expand(known).values():
        headline = run.experiment == "headline"
        assert run.prompts == (known.sizes.prompts if headline else known.sizes.sweep_prompts)
        assert run.output_tokens == (known.sizes.output_tokens if headline else known.sizes.sweep_output_tokens)
    for run in grid.timeline(known).values():
        assert (run.prompts, run.output_tokens) == (1, known.sizes.timeline_tokens)


def test_the_sweep_has_the_plain_decoding_it_is_compared_with() -> None:
    """Guards against a sweep without a speedup."""
    known = params.check(RAW)
    assert f"sweep/autoregressive/default/{known.sweep.dataset}" in grid.expand(known)


def test_equal_runs_are_one() -> None:
    """Guards against measuring the same run twice, whichever part of the parameters asks for it."""
    baselines = ("autoregressive", "transformers")
    known = changed(
        methods={name: {"decoder": name} for name in baselines},
        benchmark={"methods": list(baselines), "also": {}, "grids": {}},
        sweep={"method": "autoregressive", "dataset": RAW["datasets"][0], "settings": []},
        penalised={**RAW["penalised"], "methods": ["autoregressive"]},
        timeline=[],
    )
    assert len(grid.expand(known)) == 2 * len(known.datasets) + 2


def test_a_changed_knob_is_another_folder() -> None:
    """Guards against results of old parameters being taken for new ones."""
    methods = {**RAW["methods"], "dynatree": {**RAW["methods"]["dynatree"], "depth": 5}}
    old, new = set(grid.expand(changed())), set(grid.expand(changed(methods=methods)))
    assert {folder for folder in old - new if folder.startswith("runs/")} == {
        f"runs/dynatree/D63_B3_tau0.01_N63/{dataset}" for dataset in RAW["datasets"]
    }
    assert {folder for folder in new - old if folder.startswith("runs/")} == {
        f"runs/dynatree/D5_B3_tau0.01_N63/{dataset}" for dataset in RAW["datasets"]
    }
