"""How long a scale would take: added up from measured speeds, shared out among machines."""

import json
from pathlib import Path
from typing import Any

import pytest

from dynatree.commands import cli
from dynatree.errors import UserError
from dynatree.measuring import pacing
from dynatree.study import estimate, grid, params

PACE = {
    "autoregressive": {"tpot_ms": 50.0, "ttft_ms": 160.0},
    "machine": {"processor": "Abacus"},
    "prompt_tokens": 128,
    "speedup": {"autoregressive": 1.0, "dynatree": 4.0},
}


def test_a_run_is_added_up_from_what_was_measured() -> None:
    """Guards against audits, references or a method's speed left out of the sum."""
    known = params.read(params.default_path())
    measured = estimate.measured(PACE)
    assert measured.step == 0.05 and measured.prompt_token == pytest.approx(0.025)
    found = {part.title: part for part in estimate.parts(known, measured, step=0.1, job=5)}
    runs = [run for run in grid.expand(known).values() if run.top == "runs"]
    assert found["runs"].tokens == sum(run.prompts * run.output_tokens for run in runs)
    sizes = known.sizes
    forwards = (2 * sizes.prompt_tokens + sizes.output_tokens) * 0.025 * 0.1
    every = max(pacing.SAMPLE_EVERY, pacing.SAMPLE_REST * 0.4)
    for method, speed in (("autoregressive", 1), ("dynatree", 4), ("linear", 1)):
        place = next(place for place, run in enumerate(runs) if run.method == method)
        decoding = sizes.output_tokens * 0.1 / speed
        wanted = 5 + sizes.prompts * (decoding + forwards + 0.4 * (2 + decoding / every))
        assert found["runs"].seconds[place] == pytest.approx(wanted), method


def test_jobs_are_shared_out_the_longest_first() -> None:
    """Guards against a sum divided by machines, which the longest job may exceed."""
    assert estimate.makespan([2, 3, 2, 3, 2], 1) == 12
    assert estimate.makespan([2, 3, 2, 3, 2], 2) == 7
    assert estimate.makespan([2, 3, 2, 3, 2], 50) == 3


@pytest.mark.parametrize("pace", [{}, [], {"autoregressive": {}}, {**PACE, "speedup": {"dynatree": 0}}, None])
def test_a_pace_without_speeds_is_refused(pace: Any) -> None:
    """Guards against a traceback, or an estimate from nothing."""
    with pytest.raises(UserError, match="make all"):
        estimate.measured(pace)


def test_the_command_names_what_is_wrong_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a scale, a time or a file that is taken as it comes."""
    file = tmp_path / "pace.json"
    file.write_text(json.dumps(PACE))
    given = ["estimate", "--pace", str(file)]
    cli.main([*given, "--scale", "study", "--step-ms", "7.5", "--machines", "1", "--machines", "32"])
    said = capsys.readouterr().out
    assert (
        said.startswith("scale study, an autoregressive step of 7.5 ms; speedups from Abacus")
        and "on 32 machines" in said
    )
    # Which the scale that params.yaml names leaves out.
    assert "penalised" in said
    for wrong, part in (
        (["--scale", "huge"], "choose one of tiny, laptop"),
        (["--step-ms", "0"], "--step-ms: 0.0; give more than 0"),
        (["--job-seconds", "nan"], "--job-seconds: nan"),
        (["--pace", str(tmp_path / "none.json")], "none.json cannot be read"),
        (["--machines", "0"], "give at least 1"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([*given, *wrong])
        assert caught.value.code == 2
        assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "said"), [(12.4, "12 seconds"), (95, "2 minutes"), (1044, "17 minutes"), (8640, "2.4 hours")]
)
def test_a_time_is_said_in_a_unit_that_shows_it(seconds: float, said: str) -> None:
    """Guards against a longest run of `0.00 hours`."""
    assert estimate.duration(seconds) == said
