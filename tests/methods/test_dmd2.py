"""DMD2: the distribution matching gradient by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softplus

from lightx2v_sgmd import flow
from lightx2v_sgmd.methods import DMD2, Sample
from tests.methods.samples import leaves, logits


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


def test_the_gan_s_losses_by_hand() -> None:
    sample = leaves()
    assert sample.real is not None
    gan = DMD2(gan_weight=0.5)
    fake = logits(sample.x_t, sample.sigma)
    real = logits(flow.add_noise(sample.real, sample.noise, sample.sigma), sample.sigma)
    torch.testing.assert_close(gan.generator_losses(sample)["gan"], 0.5 * softplus(-fake).mean(1))
    expected = softplus(fake).mean(1) + softplus(-real).mean(1)
    torch.testing.assert_close(gan.discriminator_losses(sample)["discriminator"], expected)
