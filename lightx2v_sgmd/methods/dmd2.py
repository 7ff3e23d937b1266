"""DMD2: reverse KL by score difference, the fake score refitted several times an iteration.

The gradient is DMD's, ``(x_fake - x_real) / mean |x0 - x_real|`` per sample (arXiv 2311.18828,
Eq. 7 and 8), given to x0 and to nothing else. As the baseline of arXiv 2605.30116 (Sec. 4.1) there
are five fake-score updates and no GAN. DMD2's GAN (arXiv 2405.14867, Sec. 4.3) is an option: a
classifier on noised latents of real videos with the non-saturating loss. Here it reads the frozen
teacher's blocks where DMD2's reads the fake score's, whose own update so stays that of its loss.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch.nn.functional import softplus

from lightx2v_sgmd import objectives
from lightx2v_sgmd.flow import add_noise
from lightx2v_sgmd.methods.base import (
    DISCRIMINATOR,
    FAKE_SCORE,
    STRICT,
    STUDENT,
    Losses,
    Sample,
)


@dataclass(frozen=True, config=STRICT)
class DMD2:
    """Improved distribution matching distillation."""

    name: Literal["dmd2"] = "dmd2"
    # Fake-score updates for each generator update, each on a fresh rollout.
    fake_score_updates: Annotated[int, Field(ge=1)] = 5
    # Lower bound of DMD's normaliser, mean |x0 - x_real| of a sample.
    floor: Annotated[float, Field(gt=0)] = 1e-5
    # Weight of the GAN term in the generator's loss; 0 is no GAN. It needs data.latents.
    gan_weight: Annotated[float, Field(ge=0)] = 0.0
    # The GAN's heads: one on every so many teacher blocks, so many channels each, their rate.
    head_every: Annotated[int, Field(ge=1)] = 3
    head_channels: Annotated[int, Field(ge=32, multiple_of=32)] = 64
    discriminator_lr: Annotated[float, Field(gt=0)] = 5e-6

    fresh_rollouts: ClassVar[bool] = True
    through_fake_score: ClassVar[bool] = False
    through_teacher: ClassVar[bool] = False
    guidance_range: ClassVar[tuple[float, float] | None] = None
    pretraining: ClassVar[int] = 0

    @property
    def roles(self) -> tuple[str, ...]:
        """With a discriminator if there is a GAN term."""
        roles = (STUDENT, FAKE_SCORE)
        return (*roles, DISCRIMINATOR) if self.gan_weight else roles

    @property
    def reads_latents(self) -> Literal["videos"] | None:
        """Encoded videos, for the GAN term."""
        return "videos" if self.gan_weight else None

    def generator_losses(self, sample: Sample) -> Losses:
        """DMD's surrogate, whose gradient at x0 is DMD's; the GAN term if there is one."""
        assert sample.x_real is not None, "DMD needs the teacher"
        losses = {
            "dmd": objectives.distribution_matching(
                sample.x0, sample.x_fake, sample.x_real, self.floor
            )
        }
        if self.gan_weight:
            assert sample.discriminate is not None, "the GAN term needs a discriminator"
            logits = sample.discriminate(sample.x_t, sample.sigma)
            losses["gan"] = self.gan_weight * softplus(-logits).mean(1)
        return losses

    def fake_score_losses(self, sample: Sample) -> Losses:
        """Flow matching on generated data."""
        return {"fake": objectives.velocity_matching(sample.velocity_fake, sample.noise, sample.x0)}

    def discriminator_losses(self, sample: Sample) -> Losses:
        """Generated against real, noised alike."""
        assert sample.discriminate is not None and sample.real is not None
        real_t = add_noise(sample.real, sample.noise, sample.sigma)
        both = sample.discriminate(torch.cat([sample.x_t, real_t]), sample.sigma.repeat(2))
        fake, real = both.chunk(2)
        return {"critic": softplus(fake).mean(1) + softplus(-real).mean(1)}
