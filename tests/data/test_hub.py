"""The hub's client is told whether to look into its caches alone."""

import sys

import huggingface_hub.constants
import pytest

from dynatree.data import hub


@pytest.mark.parametrize("installed", [True, False], ids=["with datasets", "without"])
def test_a_model_is_had_without_the_package_for_text(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards `pip install .` alone, which decodes with models of the hub and has no `datasets`."""
    if not installed:
        for name in [name for name in sys.modules if name.split(".")[0] == "datasets"]:
            monkeypatch.delitem(sys.modules, name)
        # What import finds of a package that is not there.
        monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with hub.access("model some/name", "none"):
        assert huggingface_hub.constants.HF_HUB_OFFLINE is True
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE
