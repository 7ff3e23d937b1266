"""The student's steps, and diffusers' own scheduler on them."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from lightx2v_sgmd.schedule import Schedule, even_timesteps, evenly_spaced
from lightx2v_sgmd.system.errors import UserError


def test_the_papers_timesteps() -> None:
    schedule = Schedule()
    assert schedule.sigmas.dtype == torch.float32
    expected = torch.tensor([1000, 960, 8000 / 9, 8000 / 11])
    torch.testing.assert_close(schedule.timesteps, expected, rtol=1e-6, atol=0)
    assert schedule.sigmas[-1] == 0 and len(schedule.sigmas) == 5


def test_saved_form_is_the_contract() -> None:
    saved = Schedule().to_dict()
    assert saved == {
        "timesteps": [1000, 960, 888.889, 727.273],
        "shift": 8.0,
        "base": [1000, 750, 500, 250],
        "solver": "euler",
    }
    assert Schedule.from_dict(saved) == Schedule()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shift": 5.0}, "not shift 5"),
        ({"timesteps": [1000, 937.5, 833.3, 625]}, "not shift 8"),
        ({"timesteps": [1000]}, "not shift 8"),
        ({"solver": "heun"}, "euler"),
        ({"base": [250, 500]}, "falling"),
        ({"base": None}, "cannot be read"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Schedule.from_dict({**Schedule().to_dict(), **change})
    with pytest.raises(UserError, match="missing"):
        Schedule.from_dict({"shift": 8.0})


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_stock_scheduler_takes_our_steps(steps: int) -> None:
    schedule = Schedule(even_timesteps(steps))
    stock = FlowMatchEulerDiscreteScheduler(**schedule.diffusers_config())
    stock.set_timesteps(steps)
    torch.testing.assert_close(stock.sigmas, schedule.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(stock.timesteps, schedule.timesteps, rtol=0, atol=1e-3)


def test_even_steps() -> None:
    assert even_timesteps(4) == (1000, 750, 500, 250) and even_timesteps(1) == (1000,)
    assert evenly_spaced([1000, 750, 500, 250]) and not evenly_spaced([1000, 750, 500, 251])
    saved = [1000, 666.667, 333.333]  # as a manifest rounds them
    assert evenly_spaced(saved, tolerance=1e-3) and not evenly_spaced(saved)


def test_uneven_steps_have_no_stock_form() -> None:
    with pytest.raises(UserError, match="evenly"):
        Schedule((1000, 600, 300)).diffusers_config()
