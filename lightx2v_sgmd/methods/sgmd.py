"""SGMD: teacher stop-gradient Fisher with the dual potentials NR and RC (arXiv 2605.30116, Alg. 1).

Generator: ``Fisher + lambda NR`` (Eq. 21), the gradient reaching it through the fake score at x_t.
Fake score: ``lambda RC`` on the same x_t (Eq. 22), one update for one generator update.
"""

from __future__ import annotations

from typing import Literal

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import Losses, Sample


class SGMD:
    """Score Gradient Matching Distillation.

    Args:
        lambda_: Weight of the dual potentials; the paper's best is 0.1 (Table 2).
        weighting: ``"paper"`` weighs Fisher by c(t) = alpha^2/sigma^4 clamped at ``max_weight``
            and leaves both potentials unweighted. ``"normalized"`` is the form of the authors'
            public code: Fisher divided by ``mean |x0 - x_real|`` per sample, NR by sigma, and the
            fake score learns by plain velocity matching, which AdamW does not tell from RC.
        max_weight: The clamp of c(t).
    """

    name = "sgmd"
    roles: tuple[str, ...] = ("student", "fake_score")
    fake_score_updates = 1
    fresh_rollouts = False
    through_fake_score = True

    def __init__(
        self,
        lambda_: float = 0.1,
        weighting: Literal["paper", "normalized"] = "normalized",
        max_weight: float = 10.0,
    ) -> None:
        self.lambda_ = lambda_
        self.weighting = weighting
        self.max_weight = max_weight

    def generator_losses(self, sample: Sample) -> Losses:
        """Fisher and lambda NR; the gradient reaches the student through ``x_fake`` alone."""
        assert sample.x_real is not None, "SGMD's generator loss needs the teacher"
        nr = objectives.negative_residual(sample.x0, sample.x_fake)
        if self.weighting == "paper":
            weight = objectives.paper_weight(sample.sigma, self.max_weight)
        else:
            weight = objectives.normalized_weight(sample.x0, sample.x_real)
            nr = nr / sample.sigma
        fisher = objectives.fisher(sample.x_fake, sample.x_real, weight)
        return {"fisher": fisher, "nr": self.lambda_ * nr}

    def fake_score_losses(self, sample: Sample) -> Losses:
        """Lambda RC, or velocity matching under the normalized weighting."""
        if self.weighting == "paper":
            rc = objectives.residual_contraction(sample.x0, sample.x_fake)
            return {"rc": self.lambda_ * rc}
        matching = objectives.velocity_matching(sample.velocity_fake, sample.noise, sample.x0)
        return {"rc": matching}
