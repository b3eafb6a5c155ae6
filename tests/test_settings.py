"""How knobs are written in a path: what stands there can be read back, and one setting has one spelling."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynatree import settings
from dynatree.errors import UserError

BASE = {"policy": "threshold", "drafting": "model", "depth": 8, "branch": 3, "threshold": 0.03, "budget": 64}

_NUMBERS = st.one_of(st.none(), st.integers(0, 2048), st.floats(0, 1, allow_nan=False))


def test_settings_are_written_with_the_fields_symbols() -> None:
    """Guards the names of result folders: plug-ins' names are not knobs, and a method without knobs has a name too."""
    assert settings.write(BASE) == "D8_B3_tau0.03_N64"
    assert settings.write({**BASE, "threshold": None, "budget": None}) == "D8_B3_tauNone_NNone"
    assert settings.write({}) == "default"


@given(st.dictionaries(st.sampled_from(sorted(settings.SYMBOLS)), _NUMBERS, min_size=1))
def test_settings_can_be_read_back(knobs: dict[str, Any]) -> None:
    """Guards against values that change on the way: None, exponents, and integers that become floats."""
    back = settings.parse(settings.write(knobs))
    assert back == knobs
    assert {knob: type(value) for knob, value in back.items()} == {knob: type(value) for knob, value in knobs.items()}


def test_settings_change_only_what_they_name() -> None:
    """Guards against losing the plug-ins' names, or the order that the path has."""
    assert settings.change(BASE, "D4_B2_tauNone_N16") == {
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
        settings.change(BASE, text)
