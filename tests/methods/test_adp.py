"""ADP: the losses of pretraining on pairs by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from lightx2v_sgmd import flow
from lightx2v_sgmd.methods import ADP
from lightx2v_sgmd.methods.base import PairSample
from tests.methods.samples import leaves, logits


def test_pretraining_losses_by_hand() -> None:
    sample = leaves()
    assert sample.real is not None

    def pixel_logits(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]

    pair = PairSample(sample.x0, sample.real, sample.noise, sample.sigma, logits, pixel_logits)
    method = ADP(vision_encoder="unused")
    fake = logits(sample.x_t, sample.sigma)
    real = logits(flow.add_noise(sample.real, sample.noise, sample.sigma), sample.sigma)
    losses = method.pair_generator_losses(pair)
    torch.testing.assert_close(losses["adversarial"], -0.85 * fake.mean(1))
    torch.testing.assert_close(losses["pixel"], -0.15 * pixel_logits(sample.x0).mean(1))
    hinge = (1 + fake).clamp(min=0).mean(1) + (1 - real).clamp(min=0).mean(1)
    torch.testing.assert_close(
        method.pair_discriminator_losses(pair)["discriminator"], 0.85 * hinge
    )
    on_fake, on_real = pixel_logits(sample.x0), pixel_logits(sample.real)
    hinge = (1 + on_fake).clamp(min=0).mean(1) + (1 - on_real).clamp(min=0).mean(1)
    found = method.pair_pixel_losses(pair)["pixel_discriminator"]
    torch.testing.assert_close(found, 0.15 * hinge)
