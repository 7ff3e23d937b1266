"""The steps with which a teacher is sampled: by default those of its authors."""

from __future__ import annotations

from typing import Final, Literal

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.interpolants import FlowMatching
from lightx2v_sgmd.sampling.unipc import UniPC
from lightx2v_sgmd.schedule import Schedule, even_timesteps
from lightx2v_sgmd.system.errors import UserError

TeacherSolver = Literal["unipc", "euler", "ddim"]
Solver = Schedule | UniPC
"""The steps of a sampler: a schedule for Euler or DDIM, or UniPC's."""

_NAMES: Final = {"euler": "Euler", "ddim": "DDIM", "renoise": "renoise"}

TEACHER_STEPS: Final = 50
"""Number of steps that a teacher takes unless the user asks for another one; Wan's own number."""


def teacher_schedule(shift: float = 3.0, steps: int = TEACHER_STEPS) -> Schedule:
    """Euler steps for a teacher: evenly spaced, then shifted; 3 is the bundled teacher's shift."""
    return Schedule(even_timesteps(steps), shift)


def teacher_solver(
    model: Model,
    solver: TeacherSolver | None = None,
    shift: float | None = None,
    steps: int = TEACHER_STEPS,
) -> Solver:
    """The solver with which a teacher is sampled: by default as its authors do.

    The model's family says what that is (``Model.authors_sampler``).

    Args:
        model: The teacher.
        solver: Another solver; None is the authors'.
        shift: Another flow shift; None is the authors'.
        steps: Number of steps.

    Raises:
        UserError: the scheduler's file is damaged, or the solver is not one for the teacher's
            diffusion.
    """
    named, own_shift = model.authors_sampler
    chosen, solver = own_shift if shift is None else shift, solver or named
    flow = isinstance(model.interpolant, FlowMatching)
    if (solver == "ddim") == flow:
        flows, diffuses = ("flow matching", "unipc or euler"), ("a discrete diffusion", "ddim")
        kind, use = flows if flow else diffuses
        raise UserError(
            f"--solver: {solver} is not for this teacher, which is trained by {kind}; use {use}"
        )
    if solver == "unipc":
        return UniPC(chosen, steps)
    return Schedule(even_timesteps(steps), chosen, solver)


def solver_text(solver: Solver) -> str:
    """A solver in words: ``UniPC, 50 steps, shift 5``."""
    name = "UniPC" if isinstance(solver, UniPC) else _NAMES[solver.solver]
    return f"{name}, {len(solver)} steps, shift {solver.shift:g}"
