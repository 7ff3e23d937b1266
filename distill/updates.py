"""The update of each role: its learning rate and EMA decay, and the record of what was done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from distill.loss_terms import NotFiniteError, UpdateIndex
from lightx2v_sgmd.job.schema import Job, Train
from lightx2v_sgmd.methods import Method
from lightx2v_sgmd.methods.base import pair_iterations, stage_at
from lightx2v_sgmd.parallel import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    Strategy,
    expert_role,
    role_of,
)

_COUNTED: Final = 100_000
"""Iterations whose experts are counted: by then Adam's correction, which needs the count, is 1."""


def learning_rate_factor(iteration: int, train: Train, first: int = 0) -> float:
    """Linear warm-up, flat, then linear to zero over the last ``train.decay`` iterations.

    Args:
        iteration: The iteration, counted from 0.
        train: The job's settings.
        first: The first iteration that updates the role, where its warm-up begins.
    """
    warm = (iteration - first + 1) / max(1, train.warmup)
    cold = (train.iterations - iteration) / max(1, train.decay)
    return min(1.0, warm, cold)


def average_decay(step: int, train: Train) -> float:
    """The decay of the moving average after iteration ``step``.

    Steps count from 1 at the first iteration that may update the student, or an expert of it.

    It is 0 up to ``train.ema_start``, where the average equals the student, and ``train.ema`` after
    it. So an average that begins late holds none of the undistilled weights.
    """
    return train.ema if step > train.ema_start else 0.0


def first_update(method: Method, role: str) -> int:
    """The first iteration that updates a role; a later stage or phase may be the first that does.

    Args:
        method: The job's.
        role: A role, or that of an expert.
    """
    if role != role_of(role):  # the low-noise expert
        return method.high_noise_iterations
    first = 0
    for stage in method.stages:
        if role in stage.method.roles or stage.iterations is None:
            break
        first += stage.iterations
    return first


def first_batch(method: Method, iteration: int) -> int:
    """The index in the run of the first global batch that an iteration uses.

    An iteration uses one batch for the student, and one for each update of the fake score on a
    rollout of its own. Each stage counts its own, so that no batch of prompts is skipped.
    """
    index, left = 0, iteration
    for stage in method.stages:
        count = left if stage.iterations is None else min(left, stage.iterations)
        index += count * batches_per_iteration(stage.method)
        left -= count
    return index + left * batches_per_iteration(method.stages[-1].method)


def batches_per_iteration(method: Method) -> int:
    """The number of global batches that an iteration of a stage's method uses."""
    return 1 + (method.fake_score_updates if method.fresh_rollouts else 0)


def updates_done(method: Method, step: int) -> dict[str, int]:
    """The number of updates that each role has had after so many iterations."""
    on_pairs = pair_iterations(method, step)
    done = {
        STUDENT: step,
        FAKE_SCORE: (step - on_pairs) * method.fake_score_updates,
        DISCRIMINATOR: step,
        PIXEL_DISCRIMINATOR: on_pairs,
    }
    return {role: done[role] for role in method.roles}


def updates_of_experts(
    method: Method, step: int, experts: int, expert_of: Callable[[int], int]
) -> dict[str, int]:
    """The same for a model with several experts, each of which is a role of its own.

    At most the last 100,000 iterations are counted, so that a step that is not true ends soon.

    Args:
        method: The method; it trains no discriminator.
        step: The number of iterations.
        experts: The number of experts.
        expert_of: The expert that a global batch trains, by the batch's index.
    """
    roles = [expert_role(role, expert) for role in method.roles for expert in range(experts)]
    done = dict.fromkeys(roles, 0)
    for iteration in range(max(0, step - _COUNTED), step):
        stage, first = stage_at(method, iteration).method, first_batch(method, iteration)
        done[expert_role(STUDENT, expert_of(first))] += 1
        own = batches_per_iteration(stage) - 1
        shared = [first] * (FAKE_SCORE in stage.roles and not stage.fresh_rollouts)
        for batch_index in (*shared, *range(first + 1, first + 1 + own)):
            done[expert_role(FAKE_SCORE, expert_of(batch_index))] += 1
    return done


@dataclass
class Iteration:
    """The record of one iteration.

    Attributes:
        step: Iterations done, this one included.
        exit_step: The step of the rollout that carried gradient, in the first micro-batch.
        losses: The mean of each term over the global batch, and over the updates that have it.
        grad_norm: The gradient's norm by role, before clipping, in the role's last update.
        lr: The learning rate by role.
        updates: The number of updates that had each term.
        done: The updates done so far; all of the iteration's once it is whole.
        stepped: The number of updates by role.
    """

    step: int
    exit_step: int
    losses: dict[str, float] = field(default_factory=dict)
    grad_norm: dict[str, float] = field(default_factory=dict)
    lr: dict[str, float] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)
    done: int = 0
    stepped: dict[str, int] = field(default_factory=dict)


def check_gradients(strategy: Strategy, roles: Iterable[str], index: UpdateIndex) -> None:
    """Refuses a gradient that is not finite before another role is updated.

    Afterwards, the weights that it came from would be gone.

    Raises:
        NotFiniteError: the gradient's norm of one of the roles is not finite.
    """
    for role in roles:
        norm = strategy.gradient_norm(role)
        if not math.isfinite(norm):
            raise NotFiniteError.of_gradient(role, norm, index)


def update_role(
    strategy: Strategy, job: Job, role: str, result: Iteration, index: UpdateIndex
) -> None:
    """Updates a role with its accumulated gradient, and records the norm and the learning rate.

    Raises:
        NotFiniteError: the gradient's norm is not finite; the weights have not changed.
    """
    first = first_update(job.method, role)
    factor = learning_rate_factor(index.iteration, job.train, first)
    if role_of(role) == STUDENT:
        factor *= stage_at(job.method, index.iteration).lr_factor
    result.lr[role] = strategy.settings.optimizers[role_of(role)].lr * factor
    norm = result.grad_norm[role] = strategy.step(role, result.lr[role])
    if not math.isfinite(norm):
        raise NotFiniteError.of_gradient(role, norm, index)
    result.stepped[role] = result.stepped.get(role, 0) + 1
