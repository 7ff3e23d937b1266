"""ADM: its adversarial losses by hand."""

from __future__ import annotations

import torch

from lightx2v_sgmd import flow
from lightx2v_sgmd.methods import ADM
from tests.methods.samples import leaves, logits


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
