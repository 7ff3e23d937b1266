"""ADP and DMDX: adversarial pre-training on a teacher's ODE pairs (arXiv 2507.18569, Sec. 4.2).

A pair is a noise and what the teacher's sampler made of it. The student sees their interpolation at
a time that a cubic schedule draws, near noise mostly (Sec. 4.2.1), and predicts the pair's
velocity. Discriminators judge its data prediction: one in latent space, on the frozen teacher's
blocks, of the prediction noised anew to a uniform time (Sec. 4.2.2); one in pixel space, on a
frozen vision encoder, of decoded frames. Hinge losses, weighted 0.85 and 0.15 (Eq. 9 and 10; as
printed, Eq. 9 has the pixel term's sign turned, against its text and Eq. 10).

DMDX is ADP and then ADM. Its latent heads go on from the one to the other.
"""

from __future__ import annotations

import sys
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lightx2v_sgmd import objectives
from lightx2v_sgmd.flow import add_noise
from lightx2v_sgmd.methods.adm import ADM
from lightx2v_sgmd.methods.base import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STRICT,
    STUDENT,
    Losses,
    PairSample,
    Sample,
)


@dataclass(frozen=True, config=STRICT)
class ADP:
    """Adversarial distillation pre-training."""

    name: Literal["adp"] = "adp"
    # Weights of the two discriminators (Sec. 4.2). A pixel_weight of 0 leaves the second one out.
    latent_weight: Annotated[float, Field(gt=0)] = 0.85
    pixel_weight: Annotated[float, Field(ge=0)] = 0.15
    # Folder of a transformers vision encoder for the pixel discriminator: SAM's, DINOv2, ViT.
    vision_encoder: str | None = None
    # Frames of each video that it looks at, drawn anew each time.
    pixel_frames: Annotated[int, Field(ge=1)] = 4
    # As for adm.
    head_every: Annotated[int, Field(ge=1)] = 3
    head_channels: Annotated[int, Field(ge=32, multiple_of=32)] = 64
    discriminator_lr: Annotated[float, Field(gt=0)] = 5e-6

    fake_score_updates: ClassVar[int] = 0
    fresh_rollouts: ClassVar[bool] = True
    through_fake_score: ClassVar[bool] = False
    through_teacher: ClassVar[bool] = False
    guidance_range: ClassVar[tuple[float, float] | None] = None
    reads_latents: ClassVar[Literal["pairs"]] = "pairs"
    pretraining: ClassVar[int] = sys.maxsize
    finetune_lr: ClassVar[float] = 1.0

    @property
    def roles(self) -> tuple[str, ...]:
        """With a pixel discriminator if it has a weight."""
        roles = (STUDENT, DISCRIMINATOR)
        return (*roles, PIXEL_DISCRIMINATOR) if self.pixel_weight else roles

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.pixel_weight and self.vision_encoder is None:
            raise ValueError(
                "vision_encoder is missing: pixel_weight is above 0; give the folder of a "
                "transformers vision encoder (SAM's, for example), or pixel_weight: 0"
            )
        return self

    def generator_losses(self, sample: Sample) -> Losses:
        """None: every iteration is pre-training."""
        raise NotImplementedError("adp has no score distillation")

    fake_score_losses = generator_losses
    discriminator_losses = generator_losses

    def pretraining_losses(self, sample: PairSample) -> Losses:
        """Eq. 9; the gradient reaches the student through its data prediction ``x0``."""
        x_t = add_noise(sample.x0, sample.noise, sample.sigma)
        logits = sample.discriminate(x_t, sample.sigma)
        losses = {"adversarial": -self.latent_weight * logits.mean(1)}
        if sample.judge_pixels is not None:
            losses["pixel"] = -self.pixel_weight * sample.judge_pixels(sample.x0).mean(1)
        return losses

    def pretraining_critic_losses(self, sample: PairSample) -> Losses:
        """Eq. 10, the latent discriminator's part."""
        both = torch.cat([sample.x0, sample.real])
        sigma = sample.sigma.repeat(2)
        noisy = add_noise(both, torch.cat([sample.noise, sample.noise]), sigma)
        logits = sample.discriminate(noisy, sigma)
        return {"critic": self.latent_weight * objectives.hinge(*logits.chunk(2))}

    def pretraining_pixel_losses(self, sample: PairSample) -> Losses:
        """Eq. 10, the pixel discriminator's part."""
        assert sample.judge_pixels is not None, "there is no pixel discriminator"
        judged = sample.judge_pixels(torch.cat([sample.x0, sample.real]))
        return {"pixel_critic": self.pixel_weight * objectives.hinge(*judged.chunk(2))}


@dataclass(frozen=True, config=STRICT)
class DMDX(ADM, ADP):
    """Adversarial pre-training, then adversarial distribution matching."""

    name: Literal["dmdx"] = "dmdx"  # type: ignore[assignment]
    # Iterations of pre-training; the rest of train.iterations is ADM.
    pretraining: Annotated[int, Field(ge=1)] = 1000  # type: ignore[misc]
    # The student's learning rate in the ADM part, as a share (App. B.5: 1e-7 after 1e-6).
    finetune_lr: Annotated[float, Field(gt=0, le=1)] = 0.1  # type: ignore[misc]

    fresh_rollouts: ClassVar[bool] = True
    through_fake_score: ClassVar[bool] = True
    through_teacher: ClassVar[bool] = False
    reads_latents: ClassVar[Literal["pairs"]] = "pairs"

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of both parts."""
        student, *critics = ADP.roles.fget(self)  # type: ignore[attr-defined]
        return (student, FAKE_SCORE, *critics)
