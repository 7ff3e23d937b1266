"""A Gaussian world in which every network of a distillation is known exactly.

Data are N(mean, cov) in 64 dimensions, eigenvalues over a decade in a random basis. The student is
a one-step linear generator ``x0 = A z + b``, so it is a Gaussian too, and the exact fake score is
that Gaussian's posterior mean: linear, with the gain ``K = a C (a^2 C + s^2 I)^-1`` at a time, for
the interpolant's factors a of the data and s of the noise, and a covariance C. Below ``g = a K``,
by eigenvalue: between 0 and 1.

Noise is not drawn but laid out, antithetic and with the exact second moments of a Gaussian. A loss
that is quadratic in it therefore has its exact expectation, and what a test sees is the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.interpolants import FLOW, Interpolant
from lightx2v_sgmd.methods import Losses, Method, Sample
from lightx2v_sgmd.methods.base import stage_at

# T times, P points at each, D dimensions; a batch B is T * P

DIM = 64
TIMES = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
POINTS = 4 * DIM
TIME = TIMES.repeat_interleave(POINTS)
_EYE = torch.eye(DIM, dtype=torch.float64)


def factors(path: Interpolant, times: Tensor = TIMES) -> tuple[Tensor, Tensor]:
    """Alpha and sigma at each time, both [T, 1, 1]."""
    return path.alpha(times).view(-1, 1, 1), path.sigma(times).view(-1, 1, 1)


def predict(mean: Tensor, gains: Tensor, x_t: Tensor, path: Interpolant) -> Tensor:
    """The data prediction [B, D] of a mean [D] and gains [T, D, D] for x_t [B, D] at ``TIME``."""
    centred = x_t.view(len(TIMES), -1, DIM) - factors(path)[0] * mean
    return (mean + centred @ gains).view(-1, DIM)


@dataclass(frozen=True)
class Gaussian:
    """N(mean [D], cov [D, D]) as data, and the path from it to noise."""

    mean: Tensor
    cov: Tensor
    path: Interpolant = FLOW

    @property
    def gains(self) -> Tensor:
        """K at each time, [T, D, D], symmetric."""
        alpha, noisy = factors(self.path)[0], self.noisy()[1]
        return alpha * torch.linalg.solve(noisy, self.cov.expand(len(TIMES), DIM, DIM))

    def predict(self, x_t: Tensor) -> Tensor:
        """E[x0 | x_t] for x_t [B, D] at ``TIME``."""
        return predict(self.mean, self.gains, x_t, self.path)

    def noisy(self) -> tuple[Tensor, Tensor]:
        """Mean [T, 1, D] and covariance [T, D, D] of x_t."""
        alpha, sigma = factors(self.path)
        return alpha * self.mean, alpha**2 * self.cov + sigma**2 * _EYE


@cache
def teacher(path: Interpolant = FLOW) -> Gaussian:
    """The data."""
    values = torch.logspace(-0.5, 0.5, DIM, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(DIM, generator=generator, dtype=torch.float64)
    return Gaussian(mean, basis() @ torch.diag(values) @ basis().T, path)


@cache
def basis() -> Tensor:
    """The eigenvectors of the data's covariance, in columns."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


@cache
def points() -> tuple[Tensor, Tensor]:
    """Latent z and noise, both [B, D]: jointly of mean 0 and covariance I at each time."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randn(len(TIMES), 2 * DIM, 2 * DIM, generator=generator, dtype=torch.float64)
    half = torch.linalg.qr(drawn)[0] * (2 * DIM) ** 0.5
    z, noise = torch.cat([half, -half], 1).chunk(2, -1)
    return z.reshape(-1, DIM), noise.reshape(-1, DIM)


class Tracker:
    """A learned fake score: a mean and a gain for each time, which starts as the teacher."""

    def __init__(self, path: Interpolant) -> None:
        self.path = path
        self.mean = teacher(path).mean.clone().requires_grad_()
        self.gains = teacher(path).gains.clone().requires_grad_()

    def predict(self, x_t: Tensor) -> Tensor:
        """The data prediction of this Gaussian."""
        return predict(self.mean, self.gains, x_t, self.path)


def make_sample(
    x0: Tensor,
    fake: Callable[[Tensor], Tensor],
    real: Callable[[Tensor], Tensor],
    path: Interpolant = FLOW,
    **more: Any,
) -> Sample:
    """The sample of x0 [B, D] for a method: noise at every time and both predictions."""
    noise = points()[1]
    x_t = path.add_noise(x0, noise, TIME)
    x_fake = fake(x_t)
    predicted = path.target(x_fake, path.noise(x_t, x_fake, TIME), TIME)
    return Sample(x0, noise, TIME, x_t, predicted, x_fake, real(x_t), interpolant=path, **more)


def total(losses: Losses) -> Tensor:
    """The sum that an update minimises."""
    return torch.stack(list(losses.values())).sum(0).mean()


@dataclass
class Student:
    """``x0 = factor z + shift``."""

    factor: Tensor
    shift: Tensor
    path: Interpolant = FLOW

    @classmethod
    def fresh(cls, path: Interpolant = FLOW) -> Student:
        """Standard normal: neither the data's mean nor its covariance."""
        return cls(_EYE.clone().requires_grad_(), _EYE[0].mul(0).requires_grad_(), path)

    @classmethod
    def at(cls, mean: Tensor, cov: Tensor) -> Student:
        """A given Gaussian, its factor the symmetric root."""
        values, vectors = torch.linalg.eigh(cov)
        root = vectors @ torch.diag(values.sqrt()) @ vectors.T
        return cls(root.requires_grad_(), mean.clone().requires_grad_())

    def sample(self) -> Tensor:
        """x0 [B, D] of the points."""
        return points()[0] @ self.factor.T + self.shift

    def law(self) -> Gaussian:
        """The student's distribution, without gradient."""
        factor = self.factor.detach()
        return Gaussian(self.shift.detach().clone(), factor @ factor.T, self.path)


Discriminator = Callable[[Gaussian], Callable[[Tensor, Tensor], Tensor]]
"""For the student's law, what ``Sample.discriminate`` is."""


def generator_sample(
    method: Method,
    student: Student,
    fake: Callable[[Tensor], Tensor],
    discriminator: Discriminator | None = None,
) -> Sample:
    """A sample whose gradient paths are those that the training loop gives this method."""
    through_teacher, data = method.through_teacher, teacher(student.path)
    more = {} if discriminator is None else {"discriminate": discriminator(student.law())}
    return make_sample(
        student.sample(),
        lambda x_t: fake(x_t if method.through_fake_score else x_t.detach()),
        lambda x_t: data.predict(x_t if through_teacher else x_t.detach()),
        student.path,
        **more,
    )


class Adam:
    """Adam on a matrix or more and a vector, whose rates fall to zero over the second half.

    A step of Adam moves every entry of a matrix alike, so its spectral norm by up to DIM times as
    much: matrices learn at a rate of their own.
    """

    def __init__(self, matrices: Tensor, vector: Tensor, rates: tuple[float, float]) -> None:
        groups = [
            {"params": [values], "lr": rate, "rate": rate}
            for values, rate in zip((matrices, vector), rates, strict=True)
        ]
        self.adam = torch.optim.Adam(groups, betas=(0.5, 0.9))

    def step(self, loss: Tensor, progress: float) -> None:
        """One update; ``progress`` from 0 to 1."""
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * min(1.0, 2 * (1 - progress))
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()


def distil(
    every: Method,
    iterations: int,
    discriminator: Discriminator | None = None,
    tracked: bool = False,
    path: Interpolant = FLOW,
) -> tuple[Student, Sample]:
    """Trains a student by a method's losses.

    Args:
        every: Whose losses; each of its stages in its iterations.
        iterations: Updates of the student.
        discriminator: An ideal discriminator.
        tracked: True to learn the fake score, by the method's own loss and number of updates
            after each of the student's; otherwise it is exact.
        path: The way from data to noise.

    Returns:
        The student and the last sample.
    """
    student, tracker = Student.fresh(path), Tracker(path)
    updates = every.fake_score_updates
    # Slower where a fake score has to follow.
    learner = Adam(student.factor, student.shift, (0.004 if tracked else 0.008, 0.1))
    follower = Adam(tracker.gains, tracker.mean, (0.01 / updates**0.5, 0.1 / updates**0.5))
    for i in range(iterations):
        method = stage_at(every, i).method
        fake = tracker.predict if tracked else student.law().predict
        sample = generator_sample(method, student, fake, discriminator)
        x_real, before = sample.x_real, sample.x0.detach()
        learner.step(total(method.generator_losses(sample)), i / iterations)
        for _ in range(updates if tracked else 0):
            x0 = student.sample().detach() if method.fresh_rollouts else before
            refit = make_sample(x0, tracker.predict, lambda x_t, x_real=x_real: x_real, path)  # type: ignore[misc]
            follower.step(total(method.fake_score_losses(refit)), i / iterations)
    return student, sample
