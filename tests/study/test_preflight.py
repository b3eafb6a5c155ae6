"""What needs torch is checked once for the same parameters and library."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dynatree import files
from dynatree.errors import UserError
from dynatree.study import params, plugin_checks, preflight
from tests.study.values import RAW, changed

LAPTOP = "scales.laptop.instead"


def test_knobs_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against importing torch for every job, and against trusting a stamp of other parameters."""
    calls = []
    monkeypatch.setattr(plugin_checks, "check", lambda checked: calls.append(checked) or {"answer": len(calls)})
    first, second = params.check(RAW), params.check(changed("seed", 1))
    answers = [preflight.check_once(checked, tmp_path)["answer"] for checked in (first, first, second, second)]
    assert answers == [1, 1, 2, 2]
    assert calls == [first, second]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_changed_library_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a stamp that outlives an edit of a plug-in."""
    calls = []
    monkeypatch.setattr(plugin_checks, "check", lambda checked: calls.append(checked) or {"answer": len(calls)})
    copy = tmp_path / "library" / "params.py"
    copy.parent.mkdir()
    copy.write_text("")
    monkeypatch.setattr(files, "PACKAGE", copy.parent)
    for moment in (1, 1, 2):
        os.utime(copy, (moment, moment))
        preflight.check_once(params.check(RAW), tmp_path / "stamps")
    assert len(calls) == 2


def test_a_failed_check_leaves_no_stamp(tmp_path: Path) -> None:
    """Guards against an error that is reported only the first time."""
    broken = params.check(changed("methods.dynatree.branch", 0))
    for _ in range(2):
        with pytest.raises(UserError, match="branch"):
            preflight.check_once(broken, tmp_path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (RAW, f"{LAPTOP}.dtype: int4 needs OpenVINO, which this machine lacks; write float32"),
        ({**changed(LAPTOP, {}), "dtype": "int4"}, "dtype: int4 needs OpenVINO"),
        (changed(f"{LAPTOP}.dtype", "float32"), ""),
        (changed("scales.laptop.leaves_out", []), f"{LAPTOP}.dtype: int4"),
        (
            {**changed("scales.study.instead", {}), "scale": "study"},
            "experiments.precision.dtypes: int8 needs OpenVINO, which this machine lacks; leave int8, int4 out",
        ),
        (
            {**changed(f"{LAPTOP}.dtype", "float32"), "benchmark": {**RAW["benchmark"], "dtypes": ["float32", "int8"]}},
            "benchmark.dtypes: int8 needs OpenVINO, which this machine lacks; leave int8 out",
        ),
        ({**changed("scale", "paper"), "benchmark": {**RAW["benchmark"], "dtypes": ["float16", "int8"]}}, ""),
    ],
    ids=["scale", "global", "left out", "both", "experiment", "benchmark", "GPU"],
)
def test_formats_that_the_machine_lacks_stop_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: dict[str, Any], said: str
) -> None:
    """Guards against a library that cannot be used without OpenVINO, and runs that are stopped one by one, after hours;
    against an error for an experiment that nobody runs, and a stamp of a machine that had it."""
    monkeypatch.setattr(plugin_checks, "check", lambda checked: {})
    checked = params.check(raw)
    preflight.check_once(checked, tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert params.check(raw) == checked
    if not said:
        preflight.check_once(checked, tmp_path)
        return
    with pytest.raises(UserError) as caught:
        preflight.check_once(checked, tmp_path)
    assert str(caught.value).startswith(said)
