"""The steps of a teacher's own sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lightx2v_sgmd.families.wan import WanModel
from lightx2v_sgmd.schedule import Schedule, even_timesteps
from lightx2v_sgmd.untrusted.configs import check_scheduler
from lightx2v_sgmd.untrusted.json_text import read_json_object

TEACHER_STEPS: Final = 50
"""Number of steps that a teacher takes unless the user asks for another one."""


def teacher_schedule(shift: float = 3.0, steps: int = TEACHER_STEPS) -> Schedule:
    """The teacher's own sampling steps: evenly spaced, then shifted."""
    return Schedule(even_timesteps(steps), shift)


def teacher_shift(model: WanModel) -> float:
    """The flow shift that a model's own scheduler names, or Wan's 3 for 480p."""
    path = Path(model.path) / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return 3.0
    config = read_json_object(path)
    check_scheduler(config)
    return float(config.get("flow_shift") or config.get("shift") or 3.0)
