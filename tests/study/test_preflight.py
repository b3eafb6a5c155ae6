"""What needs torch is checked once for the same parameters and library."""

import os
from pathlib import Path

import pytest

from dynatree import files
from dynatree.errors import UserError
from dynatree.study import params, plugin_checks, preflight
from tests.study.values import RAW, changed


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
