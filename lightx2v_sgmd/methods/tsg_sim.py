"""TSG-SIM: score implicit matching, L1 + L2, teacher stopped (arXiv 2605.30116, Eq. 9-12, 15).

SIM is arXiv 2410.16794. The implicit term ``L2 = c(t) <x_fake - x_real, x0 - x_fake>`` sends a
gradient to the student straight through x0 beside the one through the fake score.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import STRICT, Losses, Sample
from lightx2v_sgmd.methods.tsg import TeacherStopGradient


@dataclass(frozen=True, config=STRICT)
class TSGSIM(TeacherStopGradient):
    """Score implicit matching under teacher stop-gradient."""

    name: Literal["tsg_sim"] = "tsg_sim"
    # Fake-score updates for each generator update: one on the generator's own x_t, or more, each
    # on a fresh rollout.
    fake_score_updates: Annotated[int, Field(ge=1)] = 1

    def generator_losses(self, sample: Sample) -> Losses:
        """L1 and L2; the gradient goes through ``x_fake`` and straight to ``x0``."""
        x_real, weight = self.weighted_teacher(sample)
        return {
            "fisher": objectives.fisher(sample.x_fake, x_real, weight),
            "implicit": objectives.implicit(sample.x0, sample.x_fake, x_real, weight),
        }
