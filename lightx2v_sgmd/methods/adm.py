"""ADM: adversarial distribution matching (arXiv 2507.18569, Sec. 4.1, Alg. 1, App. B).

Fake score and teacher each take a small step along their probability flow, from x_t to
``t - delta``; a discriminator with heads on the frozen teacher's blocks tells the two apart there,
and the student, reached through the fake score and x_t, makes them alike. Hinge losses (Eq. 7, 8),
guidance drawn anew each iteration, one fake-score update for one generator update (TTUR 1). The
fake score learns from whole rollouts, and score times are uniform (Alg. 1, lines 9 and 18): the
shipped jobs have ``train.score_shift: 1.0``, but for that of the bundled teacher (docs/decisions
040).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import STRICT, Discriminator, Losses, Method, Sample


@dataclass(frozen=True, config=STRICT)
class ADM(Method):
    """Adversarial distribution matching."""

    name: Literal["adm"] = "adm"
    # The step along the flow as a share of the whole; the paper's T / 64. It is below sigma_min.
    # A teacher with a discrete noise schedule takes the nearest of its timesteps.
    delta: Annotated[float, Field(gt=0, lt=1)] = 1 / 64
    # Range from which each iteration's guidance scale is drawn uniformly (App. B.5: 5 to 7 for
    # video, 3 to 4 for SD3.5), in the Ho-Salimans form; null takes teacher.guidance_scale.
    guidance_range: tuple[float, float] | None = None
    # Fake-score updates for each generator update (the paper's TTUR), each on a fresh rollout.
    fake_score_updates: Annotated[int, Field(ge=1)] = 1
    # The discriminator: heads on the teacher's blocks.
    discriminator: Discriminator = Discriminator()

    @property
    def fresh_rollouts(self) -> bool:
        """Every fake-score update draws a rollout of its own, a single one too."""
        return True

    @property
    def whole_rollouts(self) -> bool:
        """The fake score learns videos of all steps (Alg. 1, line 9).

        Only the student's own update ends at a random step (line 15).
        """
        return True

    def generator_losses(self, sample: Sample) -> Losses:
        """The hinge loss of Eq. 7; gradient: the teacher's blocks, the fake score and x_t."""
        assert sample.discriminate is not None, "ADM needs a discriminator"
        x_next, time = self._step(sample, sample.x_fake)
        return {"adversarial": -sample.discriminate(x_next, time).mean(1)}

    def discriminator_losses(self, sample: Sample) -> Losses:
        """The hinge loss of Eq. 8 on the two next points."""
        assert sample.discriminate is not None and sample.x_real is not None
        fake, time = self._step(sample, sample.x_fake)
        real, _ = self._step(sample, sample.x_real)
        logits = sample.discriminate(torch.cat([fake, real]), time.repeat(2))
        on_fake, on_real = logits.chunk(2)
        return {"discriminator": objectives.hinge(on_fake, on_real)}

    def _step(self, sample: Sample, x0: Tensor) -> tuple[Tensor, Tensor]:
        """x_t moved by ``delta`` along the flow of a data prediction, and its time."""
        time = sample.interpolant.nearest((sample.time - self.delta).clamp(min=0))
        return sample.interpolant.step(sample.x_t, x0, sample.time, time), time
