"""What looking at the job graph must not cost: docs/guides/large_studies.md says what each of these took."""

from typing import Any

import pytest
from ruamel.yaml import YAML
from snakemake.executors import touch
from snakemake.resources import Resources
from snakemake.scheduling.job_scheduler import JobScheduler

from tests.workflow.test_slurm import PROFILES


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_nothing_is_worked_out_for_each_job_anew(profile: dict[str, Any]) -> None:
    """Guards against memory and disk that Snakemake works out from the sizes of each job's inputs, and against a solver
    that is started before each job."""
    given = dict(text.split("=", 1) for text in profile["default-resources"])
    assert {"mem_mb", "disk_mb"} <= set(given) and set(Resources.DEFAULTS["full"]) == {"mem", "disk", "tmpdir"}
    assert all(value.isdecimal() for name, value in given.items() if name != "slurm_partition")
    assert profile["scheduler"] == "greedy"


def test_dvc_reads_yaml_in_c() -> None:
    """Guards against a parser in Python, several times as slow, for parameters that are read anew for each stage."""
    parser = YAML(typ="safe").Parser
    assert parser.__module__ != "ruamel.yaml.parser", "not of the extra `workflow`: make install"


def test_what_the_rules_change_of_snakemake_is_there() -> None:
    """Guards against other names of Snakemake's: of the wait before each touched file, and of the look each second."""
    assert touch.Executor.SLEEPING_TIME > 0
    assert callable(JobScheduler._schedule_reevalutation)
