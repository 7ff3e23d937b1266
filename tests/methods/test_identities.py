"""The papers' identities in float64, which tensors carry gradient, and small times in bf16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightx2v_sgmd import flow
from lightx2v_sgmd.methods import (
    ADM,
    ADP,
    DMD2,
    DMDX,
    SGMD,
    TSGSIM,
    Losses,
    Method,
    Sample,
    SiD,
    TSGFisher,
)
from lightx2v_sgmd.methods.base import PairSample
from lightx2v_sgmd.objectives import Weighting

SHAPE = (4, 2, 3, 2, 2)
LEAVES = ("x0", "x_fake", "x_real")
WEIGHTINGS: tuple[Weighting, ...] = ("paper", "normalized")


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def logits(x: Tensor, sigma: Tensor) -> Tensor:
    """Of a discriminator with two outputs."""
    flat = x.flatten(1)
    return torch.stack([flat.sum(1), (flat**2).mean(1) - sigma], 1)


def leaves() -> Sample:
    """A sample whose predictions are leaves, so that each path's gradient can be read."""
    x0, noise, x_fake, x_real, real = (draw(i, *SHAPE) for i in range(5))
    sigma = torch.tensor([0.02, 0.3, 0.7, 0.98], dtype=torch.float64)
    for leaf in (x0, x_fake, x_real):
        leaf.requires_grad_()
    x_t = flow.add_noise(x0, noise, sigma)
    velocity = (x_t - x_fake) / flow.per_sample(sigma, x_t)
    return Sample(x0, noise, sigma, x_t, velocity, x_fake, x_real, logits, real)


def gradients(losses: Losses, sample: Sample) -> list[Tensor | None]:
    """Of the sum of the terms, with respect to the ``LEAVES``."""
    inputs = [getattr(sample, name) for name in LEAVES]
    loss = torch.stack(list(losses.values())).sum()
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True))


def assert_same(mine: Losses, theirs: Losses, sample: Sample, factor: float = 1.0) -> None:
    """Equal values and equal gradients on every path, up to a factor."""
    exact: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    values = [torch.stack(list(losses.values())).sum(0) for losses in (mine, theirs)]
    torch.testing.assert_close(values[0], factor * values[1], **exact)
    pairs = zip(gradients(mine, sample), gradients(theirs, sample), strict=True)
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, factor * other, **exact)


def test_what_a_fake_score_should_predict_carries_no_gradient() -> None:
    sample = leaves()
    assert sample.x0.requires_grad and not sample.target.requires_grad
    torch.testing.assert_close(sample.target, sample.noise - sample.x0.detach())
    late = replace(sample, time=torch.tensor([0.7, 0.8, 0.9, 0.98]).double(), phase_end=0.6)
    assert not late.target.requires_grad
    expected = flow.velocity_from(late.x0.detach(), late.noise, 0.6, late.time)
    torch.testing.assert_close(late.target, expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_sim_is_eq_30_at_alpha_1(weighting: Weighting) -> None:
    sample = leaves()
    sim = TSGSIM(weighting=weighting, max_weight=50.0).generator_losses(sample)
    sid = SiD(form="paper", alpha=1.0, weighting=weighting, max_weight=50.0)
    assert_same(sid.generator_losses(sample), sim, sample)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_sgmd_at_lambda_0_is_tsg_fisher(weighting: Weighting) -> None:
    sample = leaves()
    sgmd = SGMD(lambda_=0.0, weighting=weighting, max_weight=50.0).generator_losses(sample)
    fisher = TSGFisher(weighting=weighting, max_weight=50.0).generator_losses(sample)
    assert_same(sgmd, fisher, sample)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2, -2.5])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_two_forms_of_sid_are_one_up_to_scale(alpha: float, weighting: Weighting) -> None:
    """Published at ``1 - 1 / (2 alpha)`` times alpha is Eq. 30 at alpha, the teacher stopped alike.

    Alpha 0.5 is published 0, -2.5 is published 1.2, and published 1 is at no finite alpha.
    """
    sample = leaves()
    assert sample.x_real is not None
    stopped = replace(sample, x_real=sample.x_real.detach())
    paper = SiD(form="paper", alpha=alpha, weighting=weighting, max_weight=50.0)
    own = SiD(alpha=1 - 1 / (2 * alpha), weighting=weighting, max_weight=50.0)
    theirs = own.generator_losses(stopped)
    assert_same(paper.generator_losses(sample), theirs, sample, factor=alpha)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_eq_31_and_both_paths_of_eq_32(alpha: float) -> None:
    sample = leaves()
    method = SiD(form="paper", alpha=alpha, weighting="paper", max_weight=1e12)
    losses = method.generator_losses(sample)
    assert sample.x_real is not None
    x0, x_fake, x_real = (getattr(sample, name).detach().flatten(1) for name in LEAVES)
    size, c = x0.shape[1], flow.fisher_weight(sample.sigma)
    inner = (
        (x_real**2).sum(1) / 2
        + (0.5 - alpha) * (x_fake**2).sum(1)
        + (alpha - 1) * (x_fake * x_real).sum(1)
        + alpha * (x0 * x_fake).sum(1)
        - alpha * (x0 * x_real).sum(1)
    )
    torch.testing.assert_close(sum(losses.values()), c * inner / size, rtol=1e-9, atol=0)
    to_x0, to_fake, to_real = gradients(losses, sample)
    weight = (c / size)[:, None]
    through = weight * (alpha * (x0 - x_fake) + (1 - alpha) * (x_fake - x_real))
    assert to_real is None and to_x0 is not None and to_fake is not None
    torch.testing.assert_close(to_fake.flatten(1), through, rtol=1e-9, atol=1e-12)
    straight = weight * alpha * (x_fake - x_real)
    torch.testing.assert_close(to_x0.flatten(1), straight, rtol=1e-9, atol=1e-12)


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
    noise, x0 = draw(1, 3, 6), draw(2, 3, 6)
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


def test_dmd_by_hand() -> None:
    """One sample of two elements: ``(x_fake - x_real) / mean |x0 - x_real|`` at x0, per element."""
    x0, x_fake, x_real = (torch.tensor([pair]) for pair in ([1.0, 2.0], [3.0, 2.0], [0.0, 4.0]))
    x0.requires_grad_()
    noise, sigma = torch.zeros(1, 2), torch.tensor([0.5])
    sample = Sample(x0, noise, sigma, x0, x0, x_fake, x_real)
    losses = DMD2().generator_losses(sample)
    (gradient,) = torch.autograd.grad(losses["dmd"].sum(), x0)
    assert gradient.tolist() == [[pytest.approx(3 / 1.5 / 2), pytest.approx(-2 / 1.5 / 2)]]
    assert losses["dmd"].item() == pytest.approx((2**2 + (4 / 3) ** 2) / 2 / 2)


def test_adversarial_losses_by_hand() -> None:
    sample = leaves()
    method = ADM(delta=0.01)
    step = flow.per_sample(torch.full_like(sample.sigma, 0.01) / sample.sigma, sample.x_t)
    assert sample.x_real is not None and sample.real is not None
    fake, real = (
        logits((1 - step) * sample.x_t + step * x0, sample.sigma - 0.01)
        for x0 in (sample.x_fake, sample.x_real)
    )
    losses = method.generator_losses(sample)
    torch.testing.assert_close(losses["adversarial"], -fake.mean(1))
    hinge = (1 + fake).clamp(min=0).mean(1) + (1 - real).clamp(min=0).mean(1)
    torch.testing.assert_close(method.discriminator_losses(sample)["discriminator"], hinge)

    # A step that is longer than a sample's time ends at the data prediction itself.
    far = ADM(delta=0.5).generator_losses(sample)["adversarial"]
    zero = torch.zeros_like(sample.sigma[:1])
    torch.testing.assert_close(far[:1], -logits(sample.x_fake[:1], zero).mean(1))

    gan = DMD2(gan_weight=0.5)
    fake = logits(sample.x_t, sample.sigma)
    real = logits(flow.add_noise(sample.real, sample.noise, sample.sigma), sample.sigma)
    torch.testing.assert_close(gan.generator_losses(sample)["gan"], 0.5 * softplus(-fake).mean(1))
    expected = softplus(fake).mean(1) + softplus(-real).mean(1)
    torch.testing.assert_close(gan.discriminator_losses(sample)["discriminator"], expected)


def test_pretraining_losses_by_hand() -> None:
    sample = leaves()
    assert sample.real is not None

    def judge(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]

    pair = PairSample(sample.x0, sample.real, sample.noise, sample.sigma, logits, judge)
    method = ADP(vision_encoder="unused")
    fake = logits(sample.x_t, sample.sigma)
    real = logits(flow.add_noise(sample.real, sample.noise, sample.sigma), sample.sigma)
    losses = method.pair_generator_losses(pair)
    torch.testing.assert_close(losses["adversarial"], -0.85 * fake.mean(1))
    torch.testing.assert_close(losses["pixel"], -0.15 * judge(sample.x0).mean(1))
    hinge = (1 + fake).clamp(min=0).mean(1) + (1 - real).clamp(min=0).mean(1)
    torch.testing.assert_close(
        method.pair_discriminator_losses(pair)["discriminator"], 0.85 * hinge
    )
    on_fake, on_real = judge(sample.x0), judge(sample.real)
    hinge = (1 + on_fake).clamp(min=0).mean(1) + (1 - on_real).clamp(min=0).mean(1)
    found = method.pair_pixel_losses(pair)["pixel_discriminator"]
    torch.testing.assert_close(found, 0.15 * hinge)


PATHS: dict[str, tuple[Method, tuple[bool, bool, bool]]] = {
    # By which of x0, x_fake and x_real the generator's gradient leaves the loss.
    "sgmd": (SGMD(), (False, True, False)),
    "sgmd, paper": (SGMD(weighting="paper"), (False, True, False)),
    "tsg_fisher": (TSGFisher(), (False, True, False)),
    "tsg_sim": (TSGSIM(), (True, True, False)),
    "sid, Eq. 30": (SiD(form="paper"), (True, True, False)),
    "sid": (SiD(), (True, True, True)),
    "dmd2": (DMD2(), (True, False, False)),
    "dmd2 with its GAN": (DMD2(gan_weight=1.0), (True, False, False)),
    "adm": (ADM(), (True, True, False)),
    "dmdx": (DMDX(adp=ADP(vision_encoder="unused")).stages[1].method, (True, True, False)),
}


@pytest.mark.parametrize("case", PATHS)
def test_gradient_paths(case: str) -> None:
    method, expected = PATHS[case]
    sample = leaves()
    losses = method.generator_losses(sample)
    assert all(values.shape == (len(sample.sigma),) for values in losses.values())
    found = gradients(losses, sample)
    assert tuple(g is not None and bool(g.any()) for g in found) == expected
    assert tuple(g is not None for g in found) == expected  # where there is none: exactly none
    # What a method declares is what the loop builds: its graph has the paths that the loss uses.
    assert method.through_fake_score == expected[1] and method.through_teacher == expected[2]

    # The fake score's loss reaches its prediction; x0 is a constant there.
    fixed = replace(sample, x0=sample.x0.detach(), x_t=sample.x_t.detach())
    velocity = (fixed.x_t - sample.x_fake) / flow.per_sample(sample.sigma, sample.x_t)
    tracking = gradients(method.fake_score_losses(replace(fixed, predicted_fake=velocity)), sample)
    assert tracking[0] is None and tracking[1] is not None and tracking[2] is None


@pytest.mark.parametrize("case", PATHS)
@pytest.mark.parametrize("max_weight", [1.0, 1e12])
def test_finite_down_to_002_in_bf16(case: str, max_weight: float) -> None:
    """Every term and every gradient, c(t) unclamped (6e6) and the student at the teacher included.

    Not only the networks' outputs are bf16 here: so is all that the losses compute.
    """
    method = PATHS[case][0]
    if hasattr(method, "max_weight"):
        method = replace(method, max_weight=max_weight)  # type: ignore[type-var]
    sample = leaves()
    sigma = torch.tensor([0.02, 0.02, 0.5, 1.0], dtype=torch.bfloat16)
    x0, noise, x_fake, real = (
        getattr(sample, name).detach().bfloat16().requires_grad_()
        for name in ("x0", "noise", "x_fake", "real")
    )
    x_real = x0.detach().clone()  # where the normaliser is at its floor
    x_real[::2] += 1
    x_real.requires_grad_()
    x_t = flow.add_noise(x0, noise, sigma)
    velocity = (x_t - x_fake) / flow.per_sample(sigma, x_t)
    half = Sample(x0, noise, sigma, x_t, velocity, x_fake, x_real, logits, real)
    terms = {**method.generator_losses(half), **method.fake_score_losses(half)}
    assert all(torch.isfinite(values).all() for values in terms.values())
    for gradient in gradients(terms, half):
        assert gradient is None or torch.isfinite(gradient).all()
