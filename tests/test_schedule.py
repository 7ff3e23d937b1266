"""The student's steps, and diffusers' own scheduler on them."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule, even_timesteps, evenly_spaced
from lightx2v_sgmd.system.errors import UserError


def test_the_papers_timesteps() -> None:
    schedule = Schedule()
    assert schedule.times.dtype == torch.float32
    expected = torch.tensor([1000, 960, 8000 / 9, 8000 / 11])
    torch.testing.assert_close(schedule.timesteps, expected, rtol=1e-6, atol=0)
    assert schedule.times[-1] == 0 and len(schedule.times) == 5


def test_saved_form_is_the_contract() -> None:
    saved = Schedule().to_dict()
    assert saved == {
        "timesteps": [1000, 960, 888.889, 727.273],
        "shift": 8.0,
        "base": [1000, 750, 500, 250],
        "solver": "euler",
    }
    assert Schedule.from_dict(saved) == Schedule()
    renoise = Schedule(solver="renoise")
    assert renoise.to_dict() == {**saved, "solver": "renoise"}
    assert Schedule.from_dict(renoise.to_dict()) == renoise != Schedule()


def test_a_file_without_a_solver_is_eulers() -> None:
    saved = Schedule().to_dict()
    del saved["solver"]
    assert Schedule.from_dict(saved) == Schedule() == Schedule(solver="euler")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shift": 5.0}, "not shift 5"),
        ({"timesteps": [1000, 937.5, 833.3, 625]}, "not shift 8"),
        ({"timesteps": [1000]}, "not shift 8"),
        ({"solver": "heun"}, "'heun' is unknown; use euler, ddim, renoise"),
        ({"base": [250, 500]}, "falling"),
        ({"base": None}, "cannot be read"),
        ({"base": []}, "falling"),
        ({"base": [500, 500]}, "falling"),
        ({"base": [1000, 750, 500, 500]}, "falling"),
        ({"base": [1000.5, 500]}, r"\[1000.5, 500.0\] is not a falling list"),
        ({"base": [500, 0]}, "falling"),
        ({"base": [500, -1]}, "falling"),
        ({"base": [1000 - i / 2 for i in range(1001)]}, "has 1001 steps; use at most 1000"),
        ({"shift": 0.5}, "shift: 0.5 is below 1"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Schedule.from_dict({**Schedule().to_dict(), **change})


def test_messages_name_what_is_wrong() -> None:
    saved = Schedule().to_dict()
    with pytest.raises(UserError, match="^schedule: timesteps, base missing; export"):
        Schedule.from_dict({"shift": 8.0})
    with pytest.raises(UserError, match="^schedule: cannot be read: shift: 0.5 is below 1"):
        Schedule.from_dict({**saved, "shift": 0.5})
    with pytest.raises(UserError) as caught:
        Schedule.from_dict({**saved, "timesteps": [1000, 937.5]})
    assert str(caught.value) == (
        "schedule.timesteps: 1000, 937.5 are not shift 8 of 1000, 750, 500, 250 (that gives "
        "1000, 960, 888.889, 727.273), so two schedules were mixed; export the weights again"
    )


def test_saved_timesteps_may_be_rounded_to_a_hundredth() -> None:
    """The tolerance is that, and a hundred-thousandth of the timestep for float32."""
    saved = Schedule().to_dict()
    rounded = {**saved, "timesteps": [1000, 960, 888.9, 727.28]}
    assert Schedule.from_dict(rounded) == Schedule()
    with pytest.raises(UserError, match="two schedules were mixed"):
        Schedule.from_dict({**saved, "timesteps": [1000, 960.022, 888.889, 727.273]})


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 100])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_stock_scheduler_takes_our_steps(steps: int, shift: float) -> None:
    schedule = Schedule(even_timesteps(steps), shift)
    stock = FlowMatchEulerDiscreteScheduler(**schedule.diffusers_config())
    stock.set_timesteps(steps)
    torch.testing.assert_close(stock.sigmas, schedule.times, rtol=0, atol=2e-7)
    torch.testing.assert_close(stock.timesteps, schedule.timesteps, rtol=0, atol=2e-4)


def test_what_the_stock_scheduler_is_given() -> None:
    """Two steps are its two ends, so that their shift is ours."""
    config = {"num_train_timesteps": 1000, "shift": 8.0}
    assert Schedule(even_timesteps(1)).diffusers_config() == config
    two = Schedule(even_timesteps(2)).diffusers_config()
    assert two == {**config, "shift_terminal": pytest.approx(8 / 9, rel=1e-7)}
    assert type(two["shift_terminal"]) is float  # as JSON has it


def test_steps_that_the_stock_scheduler_cannot_take() -> None:
    """A large shift of many steps; of few, any."""
    says = "schedule.shift: diffusers' scheduler cannot take 30 steps of shift 50; use fewer"
    with pytest.raises(UserError, match=says):
        Schedule(even_timesteps(30), 50.0).diffusers_config()
    with pytest.raises(UserError, match="30 steps of shift 34.56"):
        Schedule(even_timesteps(30), 34.56).diffusers_config()
    for steps, shift in ((30, 34.55), (4, 1000.0)):
        schedule = Schedule(even_timesteps(steps), shift)
        stock = FlowMatchEulerDiscreteScheduler(**schedule.diffusers_config())
        stock.set_timesteps(steps)
        torch.testing.assert_close(stock.sigmas, schedule.times, rtol=0, atol=2e-7)


def test_stock_scheduler_adds_noise_for_a_student_that_was_trained_so() -> None:
    """Two videos, as a pipeline draws them: their noise, then that of each step, in one go."""
    schedule = Schedule(solver="renoise")
    stock = FlowMatchEulerDiscreteScheduler(**schedule.diffusers_config())
    stock.set_timesteps(4)
    source, again = (torch.Generator().manual_seed(3) for _ in range(2))
    noise = theirs = torch.randn(2, 3, 4, generator=source)
    for timestep in stock.timesteps:
        theirs = stock.step(
            torch.tanh(theirs), timestep, theirs, generator=source, return_dict=False
        )[0]
    torch.randn(2, 3, 4, generator=again)
    ours = rollout(
        lambda x, time: torch.tanh(x),
        noise,
        schedule,
        fresh_noise=lambda step: torch.randn(2, 3, 4, generator=again),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_even_steps() -> None:
    assert even_timesteps(4) == (1000, 750, 500, 250) and even_timesteps(1) == (1000,)
    assert evenly_spaced([1000, 750, 500, 250]) and not evenly_spaced([1000, 750, 500, 251])
    saved = [1000, 666.667, 333.333]  # as a manifest rounds them
    assert evenly_spaced(saved, tolerance=1e-3) and not evenly_spaced(saved)


def test_steps_that_no_program_takes_have_no_stock_form() -> None:
    with pytest.raises(UserError, match="evenly"):
        Schedule((1000, 600, 300)).diffusers_config()
    assert [Schedule(solver=s).comfyui_sampler() for s in ("euler", "renoise")] == ["euler", "lcm"]
    with pytest.raises(UserError, match="ComfyUI runs euler, renoise, not ddim"):
        Schedule(solver="ddim").comfyui_sampler()
    with pytest.raises(UserError, match="ddim is not for flow matching; use euler"):
        Schedule(solver="ddim").diffusers_config()


def test_limits_are_allowed() -> None:
    assert len(Schedule(tuple(1000 - i / 2 for i in range(1000)))) == 1000
    lowest = Schedule((1000.0, 0.5), shift=1.0)
    assert lowest.timesteps.tolist() == [1000, 0.5]
    assert Schedule((999.5,), shift=1.5).shift == 1.5


def test_steps_are_shifted_in_float64() -> None:
    """Only then rounded to float32, so that every machine has the same bits."""
    base = (997.0, 613.0, 311.0, 77.0, 3.0)
    exact = [8 * (t / 1000) / (1 + 7 * (t / 1000)) for t in base]
    assert torch.equal(Schedule(base).times[:-1], torch.tensor(exact, dtype=torch.float64).float())


def test_a_saved_base_is_rounded() -> None:
    thirds = Schedule(even_timesteps(3)).to_dict()
    assert thirds["base"] == [1000, 666.667, 333.333]
    assert [type(t) for t in thirds["base"]] == [int, float, float]


def test_even_to_within_a_tolerance() -> None:
    assert evenly_spaced([1000 + 0.9e-6, 500]) and not evenly_spaced([1000 + 1.5e-6, 500])
    assert not evenly_spaced([1000.5, 500], tolerance=0.5)
