"""A comparison saves its plan, and reads it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.comparison.plan import Plan, Settings
from lightx2v_sgmd.apps.comparison.planning import make_plan
from lightx2v_sgmd.apps.comparison.saved import plan_of, saved_plan, write_plan
from lightx2v_sgmd.system.errors import UserError


def test_a_comparison_of_an_earlier_version_goes_on(job: Path, tmp_path: Path) -> None:
    """It knows neither of the later settings; on the bundled world they are what they were."""
    overrides = ["data.prompts=sprites"]
    plan = make_plan(job, tmp_path / "out", overrides=overrides)
    write_plan(plan)
    path = plan.out / "comparison.json"
    saved = json.loads(path.read_text())
    for key in ("evaluation", "solver"):
        del saved["settings"][key]
    path.write_text(json.dumps(saved))
    assert make_plan(job, tmp_path / "out", overrides=overrides) == plan
    with pytest.raises(UserError, match="--teacher-solver: euler is not the default"):
        make_plan(job, plan.out, overrides=overrides, settings=Settings(solver="euler"))


def test_a_worker_reads_its_part_back(job: Path, tmp_path: Path) -> None:
    plan = make_plan(job, tmp_path / "out", methods=["sgmd", "dmd2"], seeds=2)
    write_plan(plan)
    part = plan_of(plan.out, "dmd2", 1)
    assert part == Plan(plan.out, {"dmd2": plan.jobs["dmd2"]}, (1,), plan.settings)
    assert list(plan_of(plan.out, "teacher", 0).jobs) == ["sgmd"]


def test_a_report_needs_the_folder_alone(job: Path, tmp_path: Path) -> None:
    plan = make_plan(job, tmp_path / "out", methods=["sgmd", "dmd2"], seeds=3)
    write_plan(plan)
    for seed in (0, 2):
        plan.measurement("teacher", seed, 0).parent.mkdir(parents=True)
    saved = saved_plan(plan.out)
    assert saved == Plan(plan.out, plan.jobs, (0, 2), plan.settings)
    assert list(saved_plan(plan.out, ["dmd2"]).jobs) == ["dmd2"]
    with pytest.raises(UserError, match="sid is not in the comparison"):
        saved_plan(plan.out, ["sid"])
