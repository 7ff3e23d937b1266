"""The few-step rollout: exact on straight paths, gradient at the exit step only."""

import pytest
import torch

from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule


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
    levels = schedule.sigmas[:-1].tolist()
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
