"""Adversarial pre-training: one iteration on a teacher's ODE pairs (arXiv 2507.18569, Sec. 4.2).

The student sees the interpolation of a pair's noise and data; discriminators of latents and of
decoded frames judge its data prediction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightx2v_sgmd.methods.base import PairMethod, PairSample
from lightx2v_sgmd.parallel import DISCRIMINATOR, PIXEL_DISCRIMINATOR, STUDENT

if TYPE_CHECKING:
    from distill.data import PairBatch
    from distill.trainer import Trainer


def add_pair_gradients(
    trainer: Trainer, method: PairMethod, micro: int, batch_index: int
) -> tuple[str, ...]:
    """Adds a micro-batch's gradients to the student and to the discriminators.

    Returns:
        The roles that received gradient.
    """
    strategy, losses = trainer.strategy, trainer.losses
    pixels = method.pixel_discriminator
    batch = trainer.batches.pair_batch(batch_index, micro, pixels.frames if pixels else 0)
    x_t = strategy.interpolant.add_noise(batch.x0, batch.noise, batch.time)
    predicted = strategy.predict(STUDENT, x_t, batch.time, batch.conditioning).float()
    x0 = strategy.interpolant.x0(x_t, predicted, batch.time)

    to_x0 = _generator_gradient(trainer, method, batch, x0)
    sample = _sample(trainer, batch, x0.detach(), update=True)
    discriminators = {DISCRIMINATOR: method.pair_discriminator_losses}
    if trainer.pixels is not None:
        discriminators[PIXEL_DISCRIMINATOR] = method.pair_pixel_losses
    for role, losses_of in discriminators.items():
        strategy.backward(role, losses.total(losses_of(sample), batch))
    strategy.backward(STUDENT, (x0 * to_x0).sum())
    return STUDENT, *discriminators


def _generator_gradient(
    trainer: Trainer, method: PairMethod, batch: PairBatch, x0: Tensor
) -> Tensor:
    """The gradient of the student's loss with respect to its data prediction ``x0``.

    With two discriminators it is the sum of two gradients, taken one after the other: so the
    graph through the teacher's blocks is gone before frames are decoded.
    """
    strategy, losses = trainer.strategy, trainer.losses
    logits: list[Tensor] = []

    def latent_loss(x0: Tensor) -> Tensor:
        sample = _sample(trainer, batch, x0, update=False)
        if trainer.pixels is None:
            return losses.total(method.pair_generator_losses(sample), batch)
        discriminate = sample.discriminate

        def noted(x: Tensor, time: Tensor) -> Tensor:
            found = discriminate(x, time)
            logits.append(found.detach())
            return found

        alone = replace(sample, discriminate=noted, discriminate_pixels=None)
        terms = method.pair_generator_losses(alone)
        return torch.stack([values.mean() for values in terms.values()]).sum()

    def whole_loss(x0: Tensor) -> Tensor:
        sample = _sample(trainer, batch, x0, update=False)
        constants = iter(logits)  # the loss asks for the same logits as before
        again = replace(sample, discriminate=lambda x, time: next(constants))
        return losses.total(method.pair_generator_losses(again), batch)

    gradient = strategy.gradient(latent_loss, x0)
    return gradient if trainer.pixels is None else gradient + strategy.gradient(whole_loss, x0)


def _sample(trainer: Trainer, batch: PairBatch, x0: Tensor, update: bool) -> PairSample:
    """The tensors for a method's losses; ``update`` is as for ``Strategy.logits``."""
    strategy, pixels = trainer.strategy, trainer.pixels

    def discriminate(x: Tensor, time: Tensor) -> Tensor:
        conditioning = batch.conditioning.repeated(len(x) // len(x0))
        return strategy.logits(x, time, conditioning, update)

    def discriminate_pixels(x0: Tensor) -> Tensor:
        assert pixels is not None, "there is no pixel discriminator"
        with torch.set_grad_enabled(not update):
            features = pixels(x0, batch.frames)
        return strategy.frame_logits(features, update).view(len(x0), -1)

    return PairSample(
        x0=x0,
        real=batch.x0,
        noise=batch.discriminator_noise,
        time=batch.discriminator_time,
        discriminate=discriminate,
        discriminate_pixels=None if pixels is None else discriminate_pixels,
        interpolant=strategy.interpolant,
    )
