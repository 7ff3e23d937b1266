"""The few-step rollout: exact on straight paths, gradient at the exit step only."""

import pytest
import torch

from lightx2v_sgmd.interpolants import (
    FLOW,
    FlowMatching,
    Interpolant,
    VariancePreserving,
    scaled_linear_alphas,
)
from lightx2v_sgmd.rollout import check_solver, rollout
from lightx2v_sgmd.schedule import Schedule, SolverName, even_timesteps
from lightx2v_sgmd.system.errors import UserError

V = VariancePreserving(scaled_linear_alphas(snr_shift=3.0, zero_snr=True), "v")
EPSILON = VariancePreserving(scaled_linear_alphas(), "epsilon")


def test_follows_a_worked_example() -> None:
    """Velocity = x: each Euler step multiplies by 1 + (next - sigma)."""
    schedule = Schedule((1000.0, 500.0), shift=1.0)
    result = rollout(lambda x, sigma: x, torch.full((1, 1), 8.0), schedule)
    assert result.item() == 8.0 * 0.5 * 0.5


def test_straight_paths_are_exact() -> None:
    noise, x0 = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for exit_step in (None, 0, 1, 2, 3):
        result = rollout(lambda x, sigma: noise - x0, noise, Schedule(), exit_step)
        torch.testing.assert_close(result, x0, atol=1e-5, rtol=0)


def test_gradient_reaches_the_exit_step_alone() -> None:
    weights = torch.ones(4, requires_grad=True)
    schedule = Schedule()
    levels = schedule.times[:-1].tolist()
    for exit_step in range(4):
        seen: list[bool] = []

        def velocity(x: torch.Tensor, sigma: torch.Tensor, seen: list[bool] = seen) -> torch.Tensor:
            seen.append(torch.is_grad_enabled())
            return x * weights[levels.index(sigma[0].item())]

        x0 = rollout(velocity, torch.randn(2, 3), schedule, exit_step)
        assert seen == [False] * exit_step + [True]
        (gradient,) = torch.autograd.grad(x0.sum(), weights)
        assert torch.nonzero(gradient).flatten().tolist() == [exit_step]


def test_float32_even_if_the_network_is_not() -> None:
    noise = torch.randn(1, 8, dtype=torch.bfloat16)
    states: list[torch.Tensor] = []
    rollout(
        lambda x, sigma: x.to(torch.bfloat16),
        noise,
        Schedule(),
        on_step=lambda step, x: states.append(x),
    )
    assert len(states) == 4 and all(x.dtype == torch.float32 for x in states)


def test_exit_step_out_of_range() -> None:
    with pytest.raises(ValueError, match="outside"):
        rollout(lambda x, sigma: x, torch.zeros(1, 1), Schedule(), exit_step=4)


def test_renoising_follows_a_worked_example() -> None:
    """Velocity = x and noise 6: x0 is (1 - sigma) x; then x0 and the noise meet half way."""
    schedule = Schedule((1000.0, 500.0), shift=1.0, solver="renoise")
    states: list[float] = []
    result = rollout(
        lambda x, time: x / 2,
        torch.full((1, 1), 8.0),
        schedule,
        on_step=lambda step, x: states.append(x.item()),
        fresh_noise=lambda step: torch.full((1, 1), 6.0 + step, dtype=torch.float64),
    )
    assert result.dtype == torch.float32
    # x0 = 8 - 4 = 4; x = 4 / 2 + 6 / 2 = 5; x0 = 5 - 5 / 4.
    assert states == [5.0, 3.75] and result.item() == 3.75
    with pytest.raises(ValueError, match="renoise needs fresh_noise"):
        rollout(lambda x, time: x, torch.zeros(1, 1), schedule)


@pytest.mark.parametrize("path", [V, EPSILON], ids=["v", "epsilon"])
@pytest.mark.parametrize("solver", ["ddim", "renoise"])
@pytest.mark.parametrize("steps", [3, 8])
def test_a_network_that_knows_x0_leads_to_it(
    path: Interpolant, solver: SolverName, steps: int
) -> None:
    """Each step's state is x0 with the noise that belongs to its time, the solver's or the new."""
    generator = torch.Generator().manual_seed(0)
    noise, x0, *fresh = torch.randn(2 + steps, 2, 3, 4, generator=generator)
    schedule = Schedule(even_timesteps(steps), 1.0, solver)
    start = path.add_noise(x0, noise, torch.ones(2))
    seen: list[torch.Tensor] = []

    def predict(x_t: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        assert torch.equal(time, path.nearest(time))
        seen.append(time)
        return path.target(x0, path.noise(x_t, x0, time), time)

    def check(step: int, x_t: torch.Tensor) -> None:
        time = path.nearest(schedule.times[step + 1].expand(2))
        at = fresh[step] if solver == "renoise" else noise
        if step < steps - 1:
            torch.testing.assert_close(x_t, path.add_noise(x0, at, time), atol=1e-4, rtol=0)

    result = rollout(
        predict,
        start,
        schedule,
        on_step=check,
        interpolant=path,
        fresh_noise=lambda step: fresh[step],
    )
    torch.testing.assert_close(result, x0, atol=1e-4, rtol=0)
    assert len(seen) == steps


def test_euler_is_the_probability_flow_of_a_v_prediction_too() -> None:
    """A network that predicts v takes the steps of the velocity that it means."""
    noise, path = (
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)),
        FlowMatching("v"),
    )

    def predict(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x0 = FLOW.x0(x, torch.tanh(x), time)
        return path.target(x0, path.noise(x, x0, time), time)

    expected = rollout(lambda x, time: torch.tanh(x), noise, Schedule())
    ours = rollout(predict, noise, Schedule(), interpolant=path)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_a_solver_of_another_interpolant_is_refused() -> None:
    with pytest.raises(UserError, match=r"euler is not for this teacher.*use ddim or renoise"):
        rollout(lambda x, time: x, torch.zeros(1, 1), Schedule(), interpolant=V)
    with pytest.raises(UserError, match=r"ddim is not for this teacher.*use euler or renoise"):
        check_solver("ddim", FLOW)
    check_solver("renoise", FLOW)
    check_solver("renoise", V)
    check_solver("euler", FLOW)
