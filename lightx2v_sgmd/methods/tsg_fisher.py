"""TSG-Fisher: the explicit term L1 alone, teacher stopped (arXiv 2605.30116, Eq. 11 and 13).

SGMD without the dual potentials: nothing in the generator's loss keeps the fake score close, so it
is refitted several times an iteration, each time on a rollout of its own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import STRICT, Losses, Sample
from lightx2v_sgmd.methods.tsg import TeacherStopGradient


@dataclass(frozen=True, config=STRICT)
class TSGFisher(TeacherStopGradient):
    """Teacher stop-gradient Fisher divergence."""

    name: Literal["tsg_fisher"] = "tsg_fisher"
    # Fake-score updates for each generator update; the paper's baseline has 5 (Sec. 4.3). One
    # update uses the generator's own x_t; more updates draw fresh rollouts.
    fake_score_updates: Annotated[int, Field(ge=1)] = 5

    def generator_losses(self, sample: Sample) -> Losses:
        """L1; the gradient reaches the student through ``x_fake`` alone."""
        x_real, weight = self.weighted_teacher(sample)
        return {"fisher": objectives.fisher(sample.x_fake, x_real, weight)}
