"""What a rule is written with: its own text and its helpers, nothing else."""

import shutil
from pathlib import Path

import pytest

from dynatree import rule_checksums

RULES = Path(__file__).resolve().parents[1] / "workflow/rules"
EVERY = rule_checksums.files(RULES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(RULES, tmp_path / "rules")
    return tmp_path / "rules"


def differing(folder: Path) -> set[str]:
    return {rule for rule in EVERY if rule_checksums.listing(rule, folder) != rule_checksums.listing(rule, RULES)}


@pytest.mark.parametrize(
    ("file", "before", "after", "rules"),
    [
        ("generate.smk", "rule generate:", "# In other words.\nrule generate:", set()),
        ("generate.smk", "    input:\n", "    # In other words.\n    input:\n", set()),
        ("common.smk", '"""The costs of several requests at once."""', '"""In other words."""', set()),
        ("calibrate.smk", '"logs/calibrate/{reading}{dtype}/tables.log"', '"logs/{reading}{dtype}.log"', set()),
        ("generate.smk", "exclusive=100", "exclusive=50", set()),
        ("perplexity.smk", "--limit", "--most", {"perplexity"}),
        ("calibrate.smk", "seed=PARAMS.seed", "seed=0", {"calibrate"}),
        ("common.smk", "--batch {run.batch}", "--batches {run.batch}", {"generate"}),
        ("distil.smk", "--drafter --seed", "--draft --seed", {"download_drafter"}),
    ],
)
def test_a_rule_changes_with_what_it_uses(folder: Path, file: str, before: str, after: str, rules: set[str]) -> None:
    """Guards against hours of measuring again for a comment or another rule, and helpers that nobody watches."""
    text = (folder / file).read_text()
    assert before in text
    (folder / file).write_text(text.replace(before, after, 1))
    assert differing(folder) == rules


def test_a_helper_of_many_changes_them_all(folder: Path) -> None:
    """Guards against helpers of helpers that are overlooked."""
    text = (folder / "common.smk").read_text()
    assert text.count("--dtype {dtype}") == 1
    (folder / "common.smk").write_text(text.replace("--dtype {dtype}", "--format {dtype}"))
    assert differing(folder) >= {"generate", "timeline", "memory", "calibrate", "perplexity", "drafter_report"}
    assert not differing(folder) & {"tokenise", "draw", "download_data"}
