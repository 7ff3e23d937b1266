"""The few-step Euler rollout of a student, for training and for inference.

Both use this one function, so a student runs exactly as it was trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightx2v_sgmd.flow import per_sample, x0_from_velocity
from lightx2v_sgmd.schedule import Schedule

# B batch, then any latent dimensions

VelocityFn = Callable[[Tensor, Tensor], Tensor]
"""A function ``(x_t [B, ...], sigma [B]) -> velocity [B, ...]``."""


def rollout(
    velocity: VelocityFn,
    noise: Tensor,
    schedule: Schedule,
    exit_step: int | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Runs the student from noise; states are float32.

    With ``exit_step`` this is training's stochastic gradient truncation (arXiv 2605.30116,
    Sec. 4.1, after Self-Forcing): the steps before it run without gradient, and the data
    prediction of step ``exit_step`` is returned with gradient. Without it every step runs under
    the caller's gradient mode; the last Euler step lands on sigma = 0, which is the same data
    prediction.

    Args:
        velocity: The student's velocity.
        noise: ``[B, ...]`` standard normal.
        schedule: The steps.
        exit_step: Index of the differentiable step, or None to run them all.
        on_step: Called after each step with its index and the state ``[B, ...]``; it may raise to
            cancel.

    Returns:
        ``x0 [B, ...]`` float32.
    """
    last = len(schedule) - 1 if exit_step is None else exit_step
    if not 0 <= last < len(schedule):
        raise ValueError(f"exit_step {exit_step} is outside the {len(schedule)} steps")
    sigmas = schedule.sigmas.to(noise.device)
    x_t = noise.float()
    for step in range(last + 1):
        sigma = sigmas[step].expand(x_t.shape[0])
        if step == last:
            x_t = x0_from_velocity(x_t, velocity(x_t, sigma).float(), sigma)
        elif exit_step is None:
            x_t = _euler(x_t, velocity(x_t, sigma), sigma, sigmas[step + 1])
        else:
            with torch.no_grad():
                x_t = _euler(x_t, velocity(x_t, sigma), sigma, sigmas[step + 1])
        if on_step is not None:
            on_step(step, x_t)
    return x_t


def _euler(x_t: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    return x_t + per_sample(next_sigma - sigma, x_t) * velocity.float()
