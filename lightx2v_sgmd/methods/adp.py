"""ADP: adversarial pre-training on a teacher's ODE pairs (arXiv 2507.18569, Sec. 4.2).

A pair is a noise and what the teacher's sampler made of it. The student sees their interpolation at
a time that a cubic schedule draws, near noise mostly (Sec. 4.2.1), and predicts what its network
predicts: the velocity, for example. Discriminators judge its data prediction: one in latent space,
on the frozen teacher's blocks, of the prediction noised anew to a uniform time (Sec. 4.2.2); one in
pixel space, on a frozen vision encoder, of decoded frames. Hinge losses, weighted 0.85 and 0.15
(Eq. 9 and 10; as printed, Eq. 9 has the pixel term's sign turned, against its text and Eq. 10).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import (
    STRICT,
    Discriminator,
    Losses,
    PairMethod,
    PairSample,
    PixelDiscriminator,
)


@dataclass(frozen=True, config=STRICT)
class ADP(PairMethod):
    """Adversarial distillation pre-training."""

    name: Literal["adp"] = "adp"
    # Weight of the latent discriminator (Sec. 4.2).
    latent_weight: Annotated[float, Field(gt=0)] = 0.85
    # Weight of the pixel discriminator; 0 leaves it out.
    pixel_weight: Annotated[float, Field(ge=0)] = 0.15
    # Folder of a transformers vision encoder for the pixel discriminator: SAM's, DINOv2, ViT.
    vision_encoder: str | None = None
    # Frames of each video that the pixel discriminator sees, drawn anew each time.
    pixel_frames: Annotated[int, Field(ge=1)] = 4
    # The latent discriminator: heads on the teacher's blocks, as for adm.
    discriminator: Discriminator = Discriminator()

    @property
    def pixel_discriminator(self) -> PixelDiscriminator | None:
        """The second discriminator, if it has a weight."""
        if not self.pixel_weight or self.vision_encoder is None:
            return None
        return PixelDiscriminator(self.vision_encoder, self.pixel_frames)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.pixel_weight and self.vision_encoder is None:
            raise ValueError(
                "vision_encoder is missing: pixel_weight is above 0; give the folder of a "
                "transformers vision encoder (SAM's, for example), or pixel_weight: 0"
            )
        return self

    def pair_generator_losses(self, sample: PairSample) -> Losses:
        """The hinge loss of Eq. 9; the gradient reaches the student through ``x0``."""
        x_t = sample.interpolant.add_noise(sample.x0, sample.noise, sample.time)
        logits = sample.discriminate(x_t, sample.time)
        losses = {"adversarial": -self.latent_weight * logits.mean(1)}
        if sample.discriminate_pixels is not None:
            losses["pixel"] = -self.pixel_weight * sample.discriminate_pixels(sample.x0).mean(1)
        return losses

    def pair_discriminator_losses(self, sample: PairSample) -> Losses:
        """The latent discriminator's part of Eq. 10."""
        both = torch.cat([sample.x0, sample.real])
        time, noise = sample.time.repeat(2), torch.cat([sample.noise, sample.noise])
        logits = sample.discriminate(sample.interpolant.add_noise(both, noise, time), time)
        return {"discriminator": self.latent_weight * objectives.hinge(*logits.chunk(2))}

    def pair_pixel_losses(self, sample: PairSample) -> Losses:
        """The pixel discriminator's part of Eq. 10."""
        assert sample.discriminate_pixels is not None, "there is no pixel discriminator"
        logits = sample.discriminate_pixels(torch.cat([sample.x0, sample.real]))
        return {"pixel_discriminator": self.pixel_weight * objectives.hinge(*logits.chunk(2))}
