"""The steps of students with a discrete diffusion that diffusers' DDIM schedulers take."""

from __future__ import annotations

from lightx2v_sgmd.schedule import NUM_TRAIN_TIMESTEPS, Schedule, even_timesteps, evenly_spaced
from lightx2v_sgmd.system.errors import UserError


def check_trailing_steps(schedule: Schedule, family: str) -> None:
    """Checks that a stock DDIM scheduler with ``trailing`` spacing takes a student's steps.

    Args:
        schedule: The student's steps.
        family: The family's name, for messages.

    Raises:
        UserError: the solver is not DDIM's, the steps are shifted or uneven, or their number does
            not divide 1000, because the scheduler finds the next step by a whole-number division.
    """
    steps = len(schedule)
    if schedule.solver != "ddim":
        raise UserError(
            f"schedule.solver: no scheduler of {family}'s stock pipeline takes the steps of "
            f"{schedule.solver}; use ddim"
        )
    if schedule.shift != 1 or not evenly_spaced(schedule.base):
        raise UserError(
            f"schedule.base: {family}'s stock scheduler spaces steps evenly, without a shift; "
            f"use shift 1.0 and {list(even_timesteps(steps))}"
        )
    if NUM_TRAIN_TIMESTEPS % steps:
        raise UserError(
            f"schedule.base: {family}'s stock scheduler takes {steps} steps unevenly; use a "
            "number of steps that divides 1000, such as 4, 5, 8 or 10"
        )
