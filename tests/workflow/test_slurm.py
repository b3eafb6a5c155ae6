"""The cluster's profile, without a cluster: docs/drills/slurm.md has a real run of it."""

import re

import yaml

from tests.workflow.world import ROOT

PROFILES = {name: yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text()) for name in ("default", "slurm")}


def timed() -> set[str]:
    """Rules that ask for the whole machine."""
    found = set()
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        blocks = re.split(r"^ *rule (\w+):$", file.read_text(), flags=re.M)
        found |= {name for name, body in zip(blocks[1::2], blocks[2::2], strict=True) if "exclusive=100" in body}
    return found


def test_timed_jobs_are_alone_on_their_node_and_never_retried() -> None:
    """Guards against a timed rule that the profile forgets, and against a slow first try that a retry would hide."""
    assert {"generate", "calibrate", "timeline"} <= timed()
    asked = PROFILES["slurm"]["set-resources"]
    alone = {rule for rule, resources in asked.items() if "--exclusive" in resources["slurm_extra"]}
    assert alone == timed()
    assert PROFILES["slurm"]["retries"] == 0 and PROFILES["slurm"]["slurm-no-requeue"]
    assert not set(PROFILES["slurm"]["groups"]) & timed()


def test_both_profiles_compare_inputs_alike() -> None:
    """Guards against a cluster that makes everything again because it compares by time where one machine does not."""
    for key in ("max-checksum-file-size", "rerun-incomplete"):
        assert PROFILES["slurm"][key] == PROFILES["default"][key]
