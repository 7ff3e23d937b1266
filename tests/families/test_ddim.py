"""Only steps that diffusers' DDIM schedulers take are accepted for a stock pipeline."""

import pytest

from lightx2v_sgmd.families.ddim import check_trailing_steps
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError


def test_even_steps_are_taken() -> None:
    check_trailing_steps(Schedule((1000, 750, 500, 250), 1.0, "ddim"), "SDXL")
    check_trailing_steps(Schedule((1000,), 1.0, "ddim"), "SDXL")


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        (Schedule((1000, 500), 1.0, "euler"), "schedule.solver: .*SDXL.* of euler; use ddim"),
        (Schedule((1000, 500), 3.0, "ddim"), r"without a shift; use shift 1.0 and \[1000"),
        (Schedule((1000, 400), 1.0, "ddim"), "spaces steps evenly"),
        (Schedule((1000, 2000 / 3, 1000 / 3), 1.0, "ddim"), "takes 3 steps unevenly"),
    ],
)
def test_other_steps_are_refused(schedule: Schedule, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        check_trailing_steps(schedule, "SDXL")
