"""SiD, score identity distillation, in two forms that an option tells apart.

With ``d = x_fake - x_real`` and ``r = x0 - x_fake``, per sample and up to its weight:

- ``form: paper``, Eq. 30 of arXiv 2605.30116: ``L1 + alpha L2 = |d|^2 / 2 + alpha <d, r>``, the
  teacher stopped. At alpha 1 it is TSG-SIM.
- ``form: published``, the loss of SiD itself (arXiv 2404.04057, Eq. 23):
  ``(1 - alpha) |d|^2 + <d, r>``, its gradient flowing through both networks at x_t.

The two alphas are not the same number: dividing Eq. 30 by its alpha gives
``|d|^2 / (2 alpha) + <d, r>``, so ``alpha_published = 1 - 1 / (2 alpha_paper)``: SIM's 1 is SiD's
1/2, SiD's 1 is the limit of L2 alone, and SiD's 1.2 gives L1 a negative weight.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import STRICT, Losses, Method, Sample


@dataclass(frozen=True, config=STRICT)
class SiD(Method):
    """Score identity distillation."""

    name: Literal["sid"] = "sid"
    # Form of the loss. "published" is SiD's own, whose gradient flows through the teacher too;
    # "paper" is Eq. 30, with the teacher stopped.
    form: Literal["published", "paper"] = "published"
    # Alpha of that form; 1.0 and 1.2 are SiD's own, 1.0 in the paper's form is TSG-SIM.
    alpha: float = 1.0
    # Fake-score updates for each generator update, as for tsg_sim.
    fake_score_updates: Annotated[int, Field(ge=1)] = 1
    # Weight of the terms, as for sgmd; SiD's own is "normalized".
    weighting: objectives.Weighting = "normalized"
    # Clamp of the paper's weight c(t), as for sgmd.
    max_weight: Annotated[float, Field(gt=0)] = 1.0

    @property
    def through_teacher(self) -> bool:
        """True in SiD's own form."""
        return self.form == "published"

    def generator_losses(self, sample: Sample) -> Losses:
        """Both terms, as the module says."""
        assert sample.x_real is not None, "SiD needs the teacher"
        x0, x_fake, x_real = sample.x0, sample.x_fake, sample.x_real
        weight = objectives.term_weight(
            sample.x0, sample.x_real, sample.fisher_weight, self.weighting, self.max_weight
        )
        if self.form == "paper":
            return {
                "fisher": objectives.fisher(x_fake, x_real, weight),
                "implicit": self.alpha * objectives.implicit(x0, x_fake, x_real.detach(), weight),
            }
        square = objectives.mean_per_sample((x_fake - x_real) ** 2)
        return {
            "fisher": (1 - self.alpha) * weight * square,
            "implicit": objectives.implicit(x0, x_fake, x_real, weight),
        }
