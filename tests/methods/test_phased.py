"""Phased DMD on a Gaussian teacher with a known answer: each expert learns its own interval.

Data are N(mean, diag(variance)) in 64 dimensions. Each expert takes one step, and its data
prediction is affine in each dimension, so its samples are Gaussian, and so is what the exact fake
score follows. The high-noise expert's samples end at time 5/6, where the teacher's marginal has
mean (1 - s) mean and variance (1 - s)^2 variance + s^2. The low-noise one starts from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightx2v_sgmd.flow import add_noise_from, euler_to, velocity_from
from lightx2v_sgmd.methods import DMD2, Sample
from tests.methods.gaussian import DIM, POINTS, points, total

END = 5 / 6
MEAN = torch.randn(DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
VARIANCE = torch.logspace(-0.5, 0.5, DIM, dtype=torch.float64)


@dataclass
class Expert:
    """A data prediction ``gain x + shift`` in each dimension."""

    gain: Tensor
    shift: Tensor

    @classmethod
    def fresh(cls) -> Expert:
        ones = torch.ones(DIM, dtype=torch.float64)
        return cls((0.5 * ones).requires_grad_(), (0 * ones).requires_grad_())


def marginal(time: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean and variance of the noised data."""
    return (1 - time) * MEAN, (1 - time) ** 2 * VARIANCE + time**2


def data_prediction(x_t: Tensor, mean: Tensor, variance: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t] by Tweedie's formula, where x_t is N(mean, variance)."""
    return (x_t - t**2 * (x_t - mean) / variance) / (1 - t)


def train(expert: Expert, x: Tensor, start: float, end: float, times: Tensor) -> Tensor:
    """Trains an expert's step from ``start`` to ``end`` by DMD; returns its samples there."""
    time, noise = times.repeat_interleave(POINTS), points()[1]
    t = time[:, None]
    adam = torch.optim.Adam([expert.gain, expert.shift], lr=0.05, betas=(0.5, 0.9))
    for iteration in range(300):
        adam.param_groups[0]["lr"] = 0.05 * min(1.0, 2 * (1 - iteration / 300))
        x0 = expert.gain * x + expert.shift
        x_s = euler_to(x, x0, torch.tensor(start), torch.tensor(end)).detach()
        x_t = add_noise_from(x_s, noise, end, time)
        mean, variance = x_s.mean(0), x_s.var(0, unbiased=False)
        alpha = (1 - t) / (1 - end)
        beta = (t**2 - alpha**2 * end**2).sqrt()
        fake = data_prediction(x_t, alpha * mean, alpha**2 * variance + beta**2, t)
        real = data_prediction(x_t, *marginal(t), t)
        predicted = (x_t - fake) / t
        sample = Sample(x0, noise, time, x_t, predicted, fake, real, phase_end=end)
        adam.zero_grad()
        total(DMD2().generator_losses(sample)).backward()
        adam.step()
    with torch.no_grad():
        x0 = expert.gain * x + expert.shift
        return euler_to(x, x0, torch.tensor(start), torch.tensor(end))


def assert_law(x: Tensor, mean: Tensor, variance: Tensor) -> None:
    torch.testing.assert_close(x.mean(0), mean, atol=0.01, rtol=0.01)
    torch.testing.assert_close(x.var(0, unbiased=False), variance, atol=0, rtol=0.02)


def test_each_expert_learns_its_interval() -> None:
    high, low = Expert.fresh(), Expert.fresh()
    at_end = train(high, points()[0], 1.0, END, torch.tensor([0.88, 0.92, 0.97]).double())
    assert_law(at_end, *marginal(END))
    # Its data prediction is not the data: that would be another sample at the boundary.
    assert ((high.gain**2 - VARIANCE).abs() > 0.1).sum() > DIM / 2
    data = train(low, at_end, END, 0.0, torch.tensor([0.2, 0.5, 0.8]).double())
    assert_law(data, MEAN, VARIANCE)


def test_regressing_on_the_target_gives_the_velocity_of_the_marginal() -> None:
    """By exact moments: the linear regression on x_t is the teacher's velocity, E[noise - x0]."""
    time = torch.tensor([0.88, 0.92, 0.97]).double().repeat_interleave(POINTS)
    z, noise = points()
    mean, variance = marginal(END)
    x_s = mean + variance.sqrt() * z
    x_t = add_noise_from(x_s, noise, END, time).view(3, POINTS, DIM)
    target = velocity_from(x_s, noise, END, time).view(3, POINTS, DIM)
    t = torch.tensor([0.88, 0.92, 0.97]).double()[:, None]
    centred = x_t - x_t.mean(1, keepdim=True)
    slope = (centred * target).mean(1) / (centred**2).mean(1)
    m, v = marginal(t)
    torch.testing.assert_close(x_t.mean(1), m)
    torch.testing.assert_close(slope, (t - (1 - t) * VARIANCE) / v)
    torch.testing.assert_close(target.mean(1), -MEAN.expand(3, DIM))
