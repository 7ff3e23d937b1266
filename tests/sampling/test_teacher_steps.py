"""A teacher is sampled as its authors do, unless another solver or shift is asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.sampling.teacher_steps import (
    TeacherSolver,
    solver_text,
    teacher_schedule,
    teacher_solver,
)
from lightx2v_sgmd.sampling.unipc import UniPC
from lightx2v_sgmd.system.errors import UserError


@pytest.mark.parametrize(("size", "shift"), [("14B", 5.0), ("1.3B", 8.0)])
def test_wans_networks_take_wans_sampler_in_every_layout(
    size: str, shift: float, tmp_path: Path
) -> None:
    for hub_id in (f"Wan-AI/Wan2.1-T2V-{size}-Diffusers", f"Wan-AI/Wan2.1-T2V-{size}"):
        assert teacher_solver(open_wan(hub_id)) == UniPC(shift, 50)
    # A local copy, whose scheduler file says 3, makes the same pairs as the hub id.
    (tmp_path / "scheduler").mkdir()
    config = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    local = replace(open_wan(hub_id), path=str(tmp_path))
    assert teacher_solver(local) == UniPC(shift, 50)


def test_the_bundled_teacher_keeps_its_euler_steps() -> None:
    solver = teacher_solver(open_wan("sprites"))
    assert solver == teacher_schedule(3.0, 50) and solver_text(solver) == "Euler, 50 steps, shift 3"
    other = teacher_solver(open_wan("sprites"), "unipc", 4.0, 7)
    assert other == UniPC(4.0, 7) and solver_text(other) == "UniPC, 7 steps, shift 4"
    assert teacher_solver(open_wan("Wan-AI/Wan2.1-T2V-14B"), "euler") == teacher_schedule(5.0, 50)


def test_another_model_takes_what_its_folder_names(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_teacher, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.5}))
    assert teacher_solver(open_wan(folder)) == UniPC(3.5, 50)
    file.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}))
    assert teacher_solver(open_wan(folder)) == teacher_schedule(2.0, 50)
    file.unlink()
    assert teacher_solver(open_wan(folder)) == UniPC(5.0, 50)


@pytest.mark.parametrize(
    ("teacher", "solver", "use"),
    [
        ("sprites", "ddim", "trained by flow matching; use unipc or euler"),
        ("zai-org/CogVideoX-2b", "euler", "trained by a discrete diffusion; use ddim"),
        ("zai-org/CogVideoX-2b", "unipc", "trained by a discrete diffusion; use ddim"),
    ],
)
def test_a_solver_for_another_diffusion_is_refused(
    teacher: str, solver: TeacherSolver, use: str
) -> None:
    """The message names the option, and only solvers that it takes."""
    with pytest.raises(UserError, match=f"^--solver: {solver} is not for this .*{use}$"):
        teacher_solver(open_model(teacher), solver)
