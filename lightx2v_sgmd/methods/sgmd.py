"""SGMD: teacher stop-gradient Fisher with the dual potentials NR and RC (arXiv 2605.30116, Alg. 1).

Generator: ``Fisher + lambda NR`` (Eq. 21), the gradient reaching it through the fake score at x_t.
Fake score: ``lambda RC`` on the same x_t (Eq. 22), one update for one generator update.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import STRICT, Losses, Method, Sample, Stage


@dataclass(frozen=True, config=STRICT)
class SGMD(Method):
    """Score Gradient Matching Distillation."""

    name: Literal["sgmd"] = "sgmd"
    # Weight of the dual potentials NR and RC; the paper's best is 0.1 (Table 2).
    lambda_: Annotated[float, Field(ge=0)] = 0.1
    # Number of iterations with NR, counted from the first one; the student of later iterations has
    # the Fisher term alone, and the fake score learns as before. NR keeps a student's covariance
    # narrower than the teacher's (docs/methods.md); the iterations without it take that back. null
    # keeps NR to the end, as the paper does.
    nr_iterations: Annotated[int, Field(ge=0)] | None = None
    # Weights of the terms. "paper": Fisher by c(t) = alpha^2 / sigma^4, clamped, both potentials
    # unweighted. "normalized", as in the authors' public code: Fisher over mean |x0 - x_real| of
    # each sample, NR over sigma, and the fake score by velocity matching, which is RC over sigma^2:
    # the same at one sigma to AdamW, but small sigmas weigh more.
    weighting: objectives.Weighting = "normalized"
    # Clamp of c(t), which reaches 6e6 at sigma = 0.02; used by the paper's weighting only.
    max_weight: Annotated[float, Field(gt=0)] = 1.0
    # Rollout of the fake score's update. "shared": the generator's, on the same x_t (the paper's
    # Alg. 1). "fresh": one of its own, after the student's update, as in the authors' public code;
    # an iteration then costs more.
    fake_score_rollout: Literal["shared", "fresh"] = "shared"

    @property
    def fresh_rollouts(self) -> bool:
        """True if the fake score's update draws a rollout of its own."""
        return self.fake_score_rollout == "fresh"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The iterations with NR, and those without it."""
        if not self.nr_iterations:
            return (Stage(self),)
        first = Stage(replace(self, nr_iterations=None), self.nr_iterations, option="nr_iterations")
        return (first, Stage(replace(self, nr_iterations=0)))

    def generator_losses(self, sample: Sample) -> Losses:
        """Fisher and lambda NR; the gradient reaches the student through ``x_fake`` alone."""
        assert sample.x_real is not None, "SGMD's generator loss needs the teacher"
        nr = objectives.negative_residual(sample.x0, sample.x_fake)
        if self.weighting == "paper":
            weight = objectives.paper_weight(sample.fisher_weight, self.max_weight)
        else:
            weight = objectives.normalized_weight(sample.x0, sample.x_real)
            nr = nr / sample.sigma
        fisher = objectives.fisher(sample.x_fake, sample.x_real, weight)
        return {"fisher": fisher, "nr": (0.0 if self.nr_iterations == 0 else self.lambda_) * nr}

    def fake_score_losses(self, sample: Sample) -> Losses:
        """Lambda RC, or flow or score matching under the normalized weighting."""
        if self.weighting == "paper":
            rc = objectives.residual_contraction(sample.x0, sample.x_fake)
            return {"rc": self.lambda_ * rc}
        return {"rc": objectives.prediction_matching(sample.predicted_fake, sample.target)}
