"""The commands ``job show`` and ``job from-lightx2v``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.resources import config_path

DMD2 = config_path("sprites_dmd2.yaml")


def test_the_whole_job_is_shown_with_the_origin_of_each_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["job", "show", str(DMD2), "--set", "train.seed=7"]) == 0
    shown = capsys.readouterr().out
    (seed,) = [line for line in shown.splitlines() if line.startswith("  seed:")]
    (shift,) = [line for line in shown.splitlines() if line.startswith("  shift:")]
    assert seed.split() == ["seed:", "7", "#", "--set"] and "sprites_sgmd.yaml" in shift
    (tmp_path / "whole.yaml").write_text(shown)
    assert "  solver: euler" in shown and "# default of Wan2.1\n" in shown
    given = load_job(DMD2, ["train.seed=7", "schedule.solver=euler"])
    assert load_job(tmp_path / "whole.yaml") == given
    assert run(["job", "show", str(DMD2), "--set", "schedule.shift=null"]) == 0
    shown = capsys.readouterr().out
    (shift,) = [line for line in shown.splitlines() if line.startswith("  shift:")]
    assert shift.split("#")[1].strip() == "default of Wan2.1"


def test_a_job_of_a_teacher_elsewhere_says_what_its_family_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"teacher.path={tmp_path / 'elsewhere'}", "video.num_frames=null"]
    assert run(["job", "show", str(DMD2), "--json", *(f"--set={text}" for text in settings)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["job"]["schedule"]["solver"] is None
    unknown = "default of the teacher's family; the teacher cannot be read here"
    assert found["origins"]["schedule.solver"] == unknown
    assert found["origins"]["video.num_frames"] == "--set"


def test_json_has_the_values_and_their_origins(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["job", "show", str(DMD2), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["job"]["method"]["name"] == "dmd2"
    assert found["origins"]["method.name"].startswith(f"{DMD2}:")
    assert found["origins"]["train.seed"].startswith(f"{DMD2.with_name('sprites_sgmd.yaml')}:")
