"""TSG-SIM: score implicit matching, L1 + L2, teacher stopped (arXiv 2605.30116, Eq. 9-12, 15).

SIM is arXiv 2410.16794. The implicit term ``L2 = c(t) <x_fake - x_real, x0 - x_fake>`` sends a
gradient to the student straight through x0 beside the one through the fake score.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import FAKE_SCORE, STRICT, STUDENT, Losses, Sample


@dataclass(frozen=True, config=STRICT)
class TSGSIM:
    """Score implicit matching under teacher stop-gradient."""

    name: Literal["tsg_sim"] = "tsg_sim"
    # Fake-score updates for each generator update: one, on the generator's own x_t, or more, each
    # on a fresh rollout.
    fake_score_updates: Annotated[int, Field(ge=1)] = 1
    # As for sgmd.
    weighting: objectives.Weighting = "normalized"
    max_weight: Annotated[float, Field(gt=0)] = 1.0

    roles: ClassVar[tuple[str, ...]] = (STUDENT, FAKE_SCORE)
    through_fake_score: ClassVar[bool] = True
    through_teacher: ClassVar[bool] = False
    guidance_range: ClassVar[tuple[float, float] | None] = None

    @property
    def fresh_rollouts(self) -> bool:
        """With more than one update."""
        return self.fake_score_updates > 1

    def generator_losses(self, sample: Sample) -> Losses:
        """L1 and L2; the gradient goes through ``x_fake`` and straight to ``x0``."""
        assert sample.x_real is not None, "SIM needs the teacher"
        x_real = sample.x_real.detach()
        weight = objectives.term_weight(
            sample.x0, sample.x_real, sample.sigma, self.weighting, self.max_weight
        )
        return {
            "fisher": objectives.fisher(sample.x_fake, x_real, weight),
            "implicit": objectives.implicit(sample.x0, sample.x_fake, x_real, weight),
        }

    def fake_score_losses(self, sample: Sample) -> Losses:
        """Flow matching on generated data."""
        return {"fake": objectives.velocity_matching(sample.velocity_fake, sample.noise, sample.x0)}
