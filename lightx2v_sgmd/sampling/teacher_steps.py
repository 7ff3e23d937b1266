"""The steps with which a teacher is sampled: by default those of its authors."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from lightx2v_sgmd.families.wan import WanModel
from lightx2v_sgmd.families.wan_sampling import DEFAULT_SHIFT, shift_of_network
from lightx2v_sgmd.sampling.unipc import UniPC
from lightx2v_sgmd.schedule import Schedule, even_timesteps
from lightx2v_sgmd.untrusted.configs import check_scheduler
from lightx2v_sgmd.untrusted.json_text import read_json_object

SolverName = Literal["unipc", "euler"]
Solver = Schedule | UniPC
"""The steps of a sampler: Euler's, or UniPC's."""

TEACHER_STEPS: Final = 50
"""Number of steps that a teacher takes unless the user asks for another one; Wan's own number."""


def teacher_schedule(shift: float = 3.0, steps: int = TEACHER_STEPS) -> Schedule:
    """Euler steps for a teacher: evenly spaced, then shifted; 3 is the bundled teacher's shift."""
    return Schedule(even_timesteps(steps), shift)


def teacher_solver(
    model: WanModel,
    solver: SolverName | None = None,
    shift: float | None = None,
    steps: int = TEACHER_STEPS,
) -> Solver:
    """The solver with which a teacher is sampled: by default as its authors do.

    For Wan's own networks that is UniPC with the shift of their code, whatever layout they are in.
    For others it is what ``scheduler/scheduler_config.json`` of the model's folder names, Euler or
    UniPC, with its shift; without such a file it is UniPC with shift 5, Wan's default.

    Args:
        model: The teacher.
        solver: Another solver; None is the authors'.
        shift: Another flow shift; None is the authors'.
        steps: Number of steps.

    Raises:
        UserError: the scheduler's file is damaged.
    """
    named, own_shift = _scheduler_facts(model)
    published = shift_of_network(model.transformer_config)
    if published is not None:
        named, own_shift = "unipc", published
    chosen = own_shift if shift is None else shift
    if (solver or named) == "euler":
        return teacher_schedule(chosen, steps)
    return UniPC(chosen, steps)


def _scheduler_facts(model: WanModel) -> tuple[SolverName, float]:
    """Solver and flow shift that a model's own scheduler file names, or Wan's without one."""
    path = Path(model.path) / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return "unipc", DEFAULT_SHIFT
    config = read_json_object(path)
    check_scheduler(config)
    shift = float(config.get("flow_shift") or config.get("shift") or DEFAULT_SHIFT)
    euler = config.get("_class_name") == "FlowMatchEulerDiscreteScheduler"
    return ("euler" if euler else "unipc"), shift


def solver_text(solver: Solver) -> str:
    """A solver in words: ``UniPC, 50 steps, shift 5``."""
    name = "UniPC" if isinstance(solver, UniPC) else "Euler"
    return f"{name}, {len(solver)} steps, shift {solver.shift:g}"
