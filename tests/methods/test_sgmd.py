"""SGMD's losses by hand, the identities of its paper, and its fixed point on a known Gaussian."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from lightx2v_sgmd import flow, methods
from lightx2v_sgmd.methods import SGMD, Sample, method_class
from lightx2v_sgmd.methods.base import stage_at
from lightx2v_sgmd.system.errors import UserError
from tests.methods.samples import gradients, leaves, normal


def make_sample(seed: int = 0, sigma: tuple[float, ...] = (0.02, 0.3, 0.98)) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    x0, noise, v, x_real = torch.randn(
        4, len(sigma), 6, generator=generator, dtype=torch.float64
    ).unbind()
    s = torch.tensor(sigma, dtype=torch.float64)
    x_t = flow.add_noise(x0, noise, s)
    return Sample(x0, noise, s, x_t, v, flow.x0_from_velocity(x_t, v, s), x_real)


def test_paper_weighting_is_eq_21_and_22() -> None:
    s = make_sample()
    method = SGMD(lambda_=0.1, weighting="paper", max_weight=1e12)
    losses = method.generator_losses(s)
    assert s.x_real is not None
    c = (1 - s.sigma) ** 2 / s.sigma**4
    torch.testing.assert_close(losses["fisher"], 0.5 * c * ((s.x_fake - s.x_real) ** 2).mean(1))
    r = s.x0 - s.x_fake
    torch.testing.assert_close(losses["nr"], -0.05 * (r**2).mean(1))
    torch.testing.assert_close(method.fake_score_losses(s)["rc"], 0.05 * (r**2).mean(1))


def test_normalized_weighting_by_hand() -> None:
    """Fisher over mean |x0 - x_real|, NR over sigma, and a velocity loss for the fake score."""
    s = make_sample()
    losses = SGMD(lambda_=0.3).generator_losses(s)
    assert s.x_real is not None
    scale = (s.x0 - s.x_real).abs().mean(1)
    torch.testing.assert_close(losses["fisher"], ((s.x_fake - s.x_real) ** 2).mean(1) / scale / 2)
    residual = ((s.x0 - s.x_fake) ** 2).mean(1)
    torch.testing.assert_close(losses["nr"], -0.3 * residual / s.sigma / 2)
    matching = SGMD(lambda_=0.3).fake_score_losses(s)["rc"]
    torch.testing.assert_close(matching, (s.predicted_fake - s.noise + s.x0).square().mean(1))


def test_the_paper_s_weight_is_clamped() -> None:
    s = make_sample()
    assert s.x_real is not None
    fisher = SGMD(weighting="paper", max_weight=3.0).generator_losses(s)["fisher"]
    half = ((s.x_fake - s.x_real) ** 2).mean(1) / 2
    weight = torch.tensor([3.0, 3.0, 0.02**2 / 0.98**4], dtype=torch.float64)
    torch.testing.assert_close(fisher, weight * half)


def test_lambda_zero_is_the_fisher_term_alone() -> None:
    for weighting in ("paper", "normalized"):
        losses = SGMD(lambda_=0.0, weighting=weighting).generator_losses(make_sample())
        assert losses["nr"].abs().max() == 0 and losses["fisher"].min() > 0


def test_nr_ends_after_its_iterations_and_the_fake_score_learns_on() -> None:
    for weighting in ("paper", "normalized"):
        method, always = SGMD(nr_iterations=3, weighting=weighting), SGMD(weighting=weighting)
        s = make_sample()
        with_nr = always.generator_losses(s)
        for iteration in range(5):
            stage = stage_at(method, iteration).method
            losses = stage.generator_losses(s)
            torch.testing.assert_close(losses["fisher"], with_nr["fisher"], rtol=0, atol=0)
            expected = with_nr["nr"] * (1.0 if iteration < 3 else 0.0)
            torch.testing.assert_close(losses["nr"], expected, rtol=0, atol=0)
            rc, before = stage.fake_score_losses(s)["rc"], always.fake_score_losses(s)["rc"]
            torch.testing.assert_close(rc, before, rtol=0, atol=0)
    assert stage_at(SGMD(nr_iterations=0), 0).method.generator_losses(s)["nr"].abs().max() == 0


def test_losses_are_finite_down_to_sigma_min_in_bf16() -> None:
    s = make_sample()
    tensors: dict[str, Any] = {
        name: v.bfloat16() for name, v in vars(s).items() if isinstance(v, Tensor)
    }
    half = Sample(**tensors)
    for weighting in ("paper", "normalized"):
        method = SGMD(weighting=weighting)
        for losses in (method.generator_losses(half), method.fake_score_losses(half)):
            assert all(torch.isfinite(term).all() for term in losses.values())


def test_unknown_method() -> None:
    with pytest.raises(UserError, match="use one of adm, adp, dmd2"):
        method_class("sgdm")
    assert "sgmd" in methods.method_names()


DIM = 64


class Gaussian(torch.nn.Module):
    """A diagonal Gaussian's exact data prediction; as fake score its two vectors are learned."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        super().__init__()
        self.mean, self.log_std = torch.nn.Parameter(mean), torch.nn.Parameter(log_std)

    def x0(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        s, variance = sigma[:, None], (2 * self.log_std).exp()
        gain = (1 - s) * variance / ((1 - s) ** 2 * variance + s**2)
        return self.mean + gain * (x_t - (1 - s) * self.mean)


def sample(
    fake: Gaussian, x0: Tensor, x_t: Tensor, noise: Tensor, sigma: Tensor, x_real: Tensor
) -> Sample:
    x_fake = fake.x0(x_t, sigma)
    return Sample(x0, noise, sigma, x_t, (x_t - x_fake) / sigma[:, None], x_fake, x_real)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum(0).mean()


def distil_gaussian(method: SGMD, steps: int = 400, batch: int = 128) -> tuple[float, float]:
    """Runs the coupled updates; returns the student's mean error and its deviation's ratio."""
    generator = torch.Generator().manual_seed(0)
    teacher = Gaussian(
        torch.randn(DIM, generator=generator), 0.3 * torch.randn(DIM, generator=generator)
    )
    fake = Gaussian(torch.zeros(DIM), torch.zeros(DIM))
    mean, log_std = torch.nn.Parameter(torch.zeros(DIM)), torch.nn.Parameter(torch.zeros(DIM))
    student_step = torch.optim.Adam([mean, log_std], lr=0.04, betas=(0.0, 0.999))
    fake_step = torch.optim.Adam(fake.parameters(), lr=0.08, betas=(0.0, 0.999))
    decay = [torch.optim.lr_scheduler.LinearLR(o, 1, 0, steps) for o in (student_step, fake_step)]
    for _ in range(steps):
        x0 = mean + log_std.exp() * torch.randn(batch, DIM, generator=generator)
        noise = torch.randn(batch, DIM, generator=generator)
        sigma = flow.sample_score_sigmas(torch.rand(batch, generator=generator), 1.0, 0.02, 0.98)
        x_t = flow.add_noise(x0, noise, sigma)
        x_real = teacher.x0(x_t, sigma).detach()

        drawn = (noise, sigma, x_real)
        student_step.zero_grad()
        total(method.generator_losses(sample(fake, x0, x_t, *drawn))).backward()
        student_step.step()
        fake_step.zero_grad()
        detached = sample(fake, x0.detach(), x_t.detach(), *drawn)
        total(method.fake_score_losses(detached)).backward()
        fake_step.step()
        for schedule in decay:
            schedule.step()
    error = (mean - teacher.mean).abs().mean().item()
    return error, (log_std - teacher.log_std).exp().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["paper", "normalized"])
def test_a_gaussian_student_finds_its_teacher(weighting: Literal["paper", "normalized"]) -> None:
    """In 64 dimensions, with NR's bias on the deviation, which lambda scales.

    With a perfect fake score Fisher vanishes only at the teacher. NR's mean gradient does not
    vanish there: sg[x0] - x_fake correlates with the noise that made x0, which shrinks the
    student's deviation. The mean is unbiased.
    """
    error, ratio = distil_gaussian(SGMD(lambda_=0.01, weighting=weighting))
    assert error < 0.06 and ratio == pytest.approx(1.0, abs=0.06)
    error, biased = distil_gaussian(SGMD(lambda_=0.2, weighting=weighting))
    assert error < 0.06 and 0.6 < biased < ratio - 0.01


def test_potentials_have_opposite_gradients_on_x_fake() -> None:
    """Eq. 19, of the method's own two updates."""
    sample, method = leaves(), SGMD(lambda_=0.3, weighting="paper")
    nr = gradients({"nr": method.generator_losses(sample)["nr"]}, sample)
    rc = gradients(method.fake_score_losses(sample), sample)
    assert nr[0] is None and rc[0] is None and nr[1] is not None and rc[1] is not None
    torch.testing.assert_close(nr[1], -rc[1], rtol=0, atol=0)
    residual = (sample.x0 - sample.x_fake).detach()
    torch.testing.assert_close(nr[1], 0.3 * residual / residual[0].numel(), rtol=1e-12, atol=0)


def test_eq_20_by_finite_differences() -> None:
    """NR's gradient at x0 for a nonlinear fake score, against differences of its own value."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 32), nn.SiLU(), nn.Linear(32, 6)).double()
    noise, x0 = normal(1, 3, 6), normal(2, 3, 6)
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    method = SGMD(lambda_=1.0, weighting="paper")

    def mu(x_t: Tensor) -> Tensor:
        return network(torch.cat([x_t, sigma[:, None]], 1))

    def potential(x0: Tensor, moved: Tensor) -> Tensor:
        """At the target x0, with x_t and so x_fake made from ``moved``."""
        x_t = flow.add_noise(moved, noise, sigma)
        sample = Sample(x0, noise, sigma, x_t, x_t, mu(x_t), x0)
        return method.generator_losses(sample)["nr"]

    leaf = x0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(potential(leaf, leaf).sum(), leaf)
    step = 1e-5
    for k in range(6):
        nudge = torch.zeros_like(x0)
        nudge[:, k] = step
        by_value = (potential(x0, x0 + nudge) - potential(x0, x0 - nudge)) / (2 * step)
        torch.testing.assert_close(gradient[:, k], by_value.detach(), rtol=1e-6, atol=1e-9)
    # And as printed: the Jacobian's adjoint at the residual.
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, row=row: mu(flow.add_noise(x, noise, sigma))[row], x0
        )[:, row]
        residual = x0[row] - mu(flow.add_noise(x0, noise, sigma))[row].detach()
        torch.testing.assert_close(gradient[row], jacobian.T @ residual / 6, rtol=1e-9, atol=1e-12)
