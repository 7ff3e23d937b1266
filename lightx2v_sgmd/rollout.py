"""The few-step rollout of a student, for training and for inference.

Both use this one function, so a student runs exactly as it was trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightx2v_sgmd.flow import per_sample
from lightx2v_sgmd.interpolants import FLOW, FlowMatching, Interpolant
from lightx2v_sgmd.schedule import Schedule, SolverName
from lightx2v_sgmd.system.errors import UserError

# B batch, then any latent dimensions

PredictFn = Callable[[Tensor, Tensor], Tensor]
"""A network: ``(x_t [B, ...], time [B]) -> prediction [B, ...]`` of the interpolant's kind."""

FreshNoise = Callable[[int], Tensor]
"""A function that gives the standard normal noise ``[B, ...]`` of a step, by the step's index."""


def solvers_of(interpolant: Interpolant) -> tuple[SolverName, ...]:
    """The solvers of the rollout in an interpolant, the usual one first."""
    return ("euler" if isinstance(interpolant, FlowMatching) else "ddim", "renoise")


def check_solver(solver: SolverName, interpolant: Interpolant) -> None:
    """Checks that a solver is one for an interpolant.

    Raises:
        UserError: Euler's for a variance-preserving diffusion, or DDIM's for flow matching, where
            Euler's is the same.
    """
    flow = isinstance(interpolant, FlowMatching)
    if solver == ("ddim" if flow else "euler"):
        kind, use = ("flow matching", "euler") if flow else ("a discrete diffusion", "ddim")
        raise UserError(
            f"schedule.solver: {solver} is not for this teacher, which is trained by {kind}; use "
            f"{use} or renoise"
        )


def rollout(
    predict: PredictFn,
    noise: Tensor,
    schedule: Schedule,
    exit_step: int | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    interpolant: Interpolant = FLOW,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """Runs the student from noise; states are float32.

    With ``exit_step`` this is training's stochastic gradient truncation (arXiv 2605.30116,
    Sec. 4.1, after Self-Forcing): the steps before it run without gradient, and the data
    prediction of step ``exit_step`` is returned with gradient. Without it every step runs under
    the caller's gradient mode, and the result is the data prediction of the last step.

    Args:
        predict: The student's network.
        noise: ``[B, ...]`` standard normal.
        schedule: The steps, and the solver that leads from one to the next.
        exit_step: Index of the differentiable step, or None to run them all.
        on_step: Called after each step with its index and the state ``[B, ...]``; it may raise to
            cancel.
        interpolant: The student's path from data to noise, and what its network predicts.
        fresh_noise: The noise that the solver ``renoise`` adds after each step but the last.

    Returns:
        ``x0 [B, ...]`` float32.

    Raises:
        UserError: the solver is not one for the interpolant.
        ValueError: ``exit_step`` is not a step, or ``renoise`` is given no noise.
    """
    last = len(schedule) - 1 if exit_step is None else exit_step
    if not 0 <= last < len(schedule):
        raise ValueError(f"exit_step {exit_step} is outside the {len(schedule)} steps")
    check_solver(schedule.solver, interpolant)
    times = interpolant.nearest(schedule.times[:-1]).to(noise.device)
    x_t = noise.float()
    for step in range(last + 1):
        time = times[step].expand(x_t.shape[0])
        if step == last:
            x_t = interpolant.x0(x_t, predict(x_t, time).float(), time)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and exit_step is None):
                predicted = predict(x_t, time).float()
                if schedule.solver == "euler" and interpolant.prediction == "velocity":
                    x_t = x_t + per_sample(times[step + 1] - time, x_t) * predicted
                else:
                    x0 = interpolant.x0(x_t, predicted, time)
                    later = times[step + 1].expand(x_t.shape[0])
                    if schedule.solver == "renoise":
                        x_t = interpolant.add_noise(x0, _noise_of(step, fresh_noise, x0), later)
                    else:
                        x_t = interpolant.step(x_t, x0, time, later)
        if on_step is not None:
            on_step(step, x_t)
    return x_t


def _noise_of(step: int, fresh_noise: FreshNoise | None, like: Tensor) -> Tensor:
    if fresh_noise is None:
        raise ValueError("the solver renoise needs fresh_noise")
    return fresh_noise(step).to(like)
