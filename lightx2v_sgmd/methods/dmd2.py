"""DMD2: reverse KL by score difference, the fake score refitted several times an iteration.

The gradient is DMD's, ``(x_fake - x_real) / mean |x0 - x_real|`` per sample (arXiv 2311.18828,
Eq. 7 and 8), given to x0 and to nothing else. As the baseline of arXiv 2605.30116 (Sec. 4.1) there
are five fake-score updates and no GAN. DMD2's GAN (arXiv 2405.14867, Sec. 4.3) is an option: a
classifier on noised latents of real videos with the non-saturating loss. Here it reads the frozen
teacher's blocks where DMD2's reads the fake score's, so that the fake score's loss is unchanged. It
sees the student's x_t of DMD's term, and real latents with the same noise and score time; DMD2's
draws a time of its own, uniformly.

Phased DMD (arXiv 2510.27684) is an option for teachers of two experts, see
docs/decisions/038-phased-dmd.md.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch.nn.functional import softplus

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import STRICT, Discriminator, Losses, Method, Sample


@dataclass(frozen=True, config=STRICT)
class DMD2(Method):
    """Improved distribution matching distillation."""

    name: Literal["dmd2"] = "dmd2"
    # Fake-score updates for each generator update, each on a fresh rollout.
    fake_score_updates: Annotated[int, Field(ge=1)] = 5
    # Lower bound of DMD's normaliser, mean |x0 - x_real| of a sample.
    floor: Annotated[float, Field(gt=0)] = 1e-5
    # Weight of the GAN term in the generator's loss; 0 is no GAN. It needs data.latents.
    gan_weight: Annotated[float, Field(ge=0)] = 0.0
    # Discriminator of the GAN, for a gan_weight above 0 only; null takes its defaults.
    discriminator: Discriminator | None = None
    # Iterations of the first of two phases, as Phased DMD has them (arXiv 2510.27684), for teachers
    # of two experts: it trains the high-noise expert alone, on its samples at the time where its
    # steps end. The iterations after it train the low-noise expert. 0 is no phases: each iteration
    # trains the expert of its exit step.
    high_noise_iterations: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _with_gan(self) -> Self:
        if self.gan_weight and self.discriminator is None:
            object.__setattr__(self, "discriminator", Discriminator())
        elif not self.gan_weight and self.discriminator is not None:
            raise ValueError(
                "discriminator is only for a gan_weight above 0; set it, or leave this out"
            )
        return self

    @property
    def fresh_rollouts(self) -> bool:
        """Every fake-score update draws a rollout of its own, a single one too."""
        return True

    @property
    def through_fake_score(self) -> bool:
        """DMD's gradient is given to x0 and to nothing else."""
        return False

    @property
    def reads_latents(self) -> Literal["videos"] | None:
        """Encoded videos, for the GAN term."""
        return "videos" if self.gan_weight else None

    def generator_losses(self, sample: Sample) -> Losses:
        """DMD's surrogate, whose gradient at x0 is DMD's, and the GAN term if it has a weight."""
        assert sample.x_real is not None, "DMD needs the teacher"
        losses = {
            "dmd": objectives.distribution_matching(
                sample.x0, sample.x_fake, sample.x_real, self.floor
            )
        }
        if self.gan_weight:
            assert sample.discriminate is not None, "the GAN term needs a discriminator"
            logits = sample.discriminate(sample.x_t, sample.time)
            losses["gan"] = self.gan_weight * softplus(-logits).mean(1)
        return losses

    def discriminator_losses(self, sample: Sample) -> Losses:
        """The non-saturating loss on generated and real latents, noised alike."""
        assert sample.discriminate is not None and sample.real is not None
        real_t = sample.interpolant.add_noise(sample.real, sample.noise, sample.time)
        both = sample.discriminate(torch.cat([sample.x_t, real_t]), sample.time.repeat(2))
        fake, real = both.chunk(2)
        return {"discriminator": softplus(fake).mean(1) + softplus(-real).mean(1)}
