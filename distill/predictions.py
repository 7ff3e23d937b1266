"""The predictions of an iteration's networks, and the tensors that a method's losses take."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from distill.data import Batch
from lightx2v_sgmd.families.conditioning import joined
from lightx2v_sgmd.flow import add_noise_from, euler_to, guide
from lightx2v_sgmd.methods import Sample
from lightx2v_sgmd.parallel import DISCRIMINATOR, STUDENT, TEACHER, Strategy
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule

# B batch of this rank, C channels, T latent frames, h, w latent height and width


def student_sample(
    strategy: Strategy, batch: Batch, schedule: Schedule, exit_step: int
) -> tuple[Tensor, Tensor]:
    """The student's data prediction at the exit step, and its sample at ``batch.phase_end``.

    Both are ``[B, C, T, h, w]`` and carry the gradient of that step. At time 0 they are the same;
    above it Euler's step leads from the exit step to the sample.
    """
    student = partial(strategy.predict, STUDENT, conditioning=batch.conditioning)
    states = [batch.noise]
    x0 = rollout(
        student,
        batch.noise,
        schedule,
        exit_step,
        on_step=(lambda step, x_t: states.append(x_t)) if batch.phase_end else None,
        interpolant=strategy.interpolant,
        fresh_noise=batch.fresh_noise,
    )
    if not batch.phase_end:
        return x0, x0
    time = schedule.times[exit_step].to(batch.time)
    return x0, euler_to(states[exit_step].float(), x0, time, time.new_tensor(batch.phase_end))


def noised(strategy: Strategy, batch: Batch, sample: Tensor) -> Tensor:
    """The student's sample, noised from ``batch.phase_end`` to the score times."""
    if batch.phase_end:
        return add_noise_from(sample, batch.score_noise, batch.phase_end, batch.time)
    return strategy.interpolant.add_noise(sample, batch.score_noise, batch.time)


def teacher_x0(strategy: Strategy, x_t: Tensor, batch: Batch, guidance_scale: float) -> Tensor:
    """The guided teacher's data prediction; both of its passes run as one batch.

    It carries gradient if ``x_t`` does.
    """
    teacher = partial(strategy.predict, TEACHER)
    with torch.set_grad_enabled(x_t.requires_grad):
        if guidance_scale == 1:
            predicted = teacher(x_t, batch.time, batch.conditioning).float()
        else:
            conditioning = joined([batch.conditioning, batch.negative])
            both = teacher(torch.cat([x_t, x_t]), batch.time.repeat(2), conditioning).float()
            cond, uncond = both.chunk(2)
            predicted = guide(cond, uncond, guidance_scale)
        return strategy.interpolant.x0(x_t, predicted, batch.time)


def loss_sample(
    strategy: Strategy,
    batch: Batch,
    x0: Tensor,
    x_t: Tensor,
    predicted: Tensor,
    x_real: Tensor | None,
    update: bool | None = None,
) -> Sample:
    """The tensors that a method's losses take.

    Args:
        strategy: The networks.
        batch: The micro-batch.
        x0: The student's rollout.
        x_t: The noised rollout.
        predicted: The fake score's prediction at ``x_t``.
        x_real: The guided teacher's data prediction, if the update needs the teacher.
        update: The update, as for ``Strategy.logits``; None gives no discriminator.
    """
    predicted = predicted.float()
    discriminate = None
    if update is not None and DISCRIMINATOR in strategy.trained:

        def discriminate(x: Tensor, time: Tensor) -> Tensor:
            conditioning = batch.conditioning.repeated(len(x) // len(x0))
            return strategy.logits(x, time, conditioning, update)

    return Sample(
        x0=x0,
        noise=batch.score_noise,
        time=batch.time,
        x_t=x_t,
        predicted_fake=predicted,
        x_fake=strategy.interpolant.x0(x_t, predicted, batch.time),
        x_real=x_real,
        discriminate=discriminate,
        real=batch.real,
        interpolant=strategy.interpolant,
        phase_end=batch.phase_end,
    )
