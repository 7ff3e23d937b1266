"""TSG-Fisher: the explicit term L1 alone, teacher stopped (arXiv 2605.30116, Eq. 11 and 13).

SGMD without the dual potentials: nothing in the generator's loss keeps the fake score close, so it
is refitted several times an iteration, each time on a rollout of its own.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import FAKE_SCORE, STRICT, STUDENT, Losses, Sample


@dataclass(frozen=True, config=STRICT)
class TSGFisher:
    """Teacher stop-gradient Fisher divergence."""

    name: Literal["tsg_fisher"] = "tsg_fisher"
    # Fake-score updates for each generator update; the paper's baseline has 5 (Sec. 4.3). One uses
    # the generator's own x_t, more draw fresh rollouts.
    fake_score_updates: Annotated[int, Field(ge=1)] = 5
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
        """L1; the gradient reaches the student through ``x_fake`` alone."""
        assert sample.x_real is not None, "the Fisher term needs the teacher"
        weight = objectives.term_weight(
            sample.x0, sample.x_real, sample.sigma, self.weighting, self.max_weight
        )
        return {"fisher": objectives.fisher(sample.x_fake, sample.x_real, weight)}

    def fake_score_losses(self, sample: Sample) -> Losses:
        """Flow matching on generated data."""
        return {"fake": objectives.velocity_matching(sample.velocity_fake, sample.noise, sample.x0)}
