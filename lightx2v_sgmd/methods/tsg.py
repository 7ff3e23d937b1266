"""The common part of TSG-Fisher and TSG-SIM: the weight of their terms (arXiv 2605.30116)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.base import STRICT, Method, Sample


@dataclass(frozen=True, config=STRICT)
class TeacherStopGradient(Method):
    """A method whose generator loss is made of weighted terms with the teacher stopped."""

    name: str = "tsg"
    # The weight of the terms: "normalized" or "paper", as for sgmd.
    weighting: objectives.Weighting = "normalized"
    # The clamp of the paper's weight c(t), as for sgmd.
    max_weight: Annotated[float, Field(gt=0)] = 1.0

    def weighted_teacher(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The stopped teacher's data prediction ``[B, ...]`` and the terms' weight ``[B]``."""
        assert sample.x_real is not None, f"{self.name} needs the teacher"
        weight = objectives.term_weight(
            sample.x0, sample.x_real, sample.fisher_weight, self.weighting, self.max_weight
        )
        return sample.x_real.detach(), weight
