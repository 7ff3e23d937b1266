"""The weight that TSG-Fisher and TSG-SIM give their terms (arXiv 2605.30116)."""

import torch

from lightx2v_sgmd import objectives
from lightx2v_sgmd.methods.tsg import TeacherStopGradient
from tests.methods.samples import leaves


def test_the_teacher_gets_no_gradient_and_the_weight_is_the_chosen_one() -> None:
    sample = leaves()
    assert sample.x_real is not None
    weightings: tuple[objectives.Weighting, ...] = ("normalized", "paper")
    for weighting in weightings:
        method = TeacherStopGradient(weighting=weighting, max_weight=0.5)
        x_real, weight = method.weighted_teacher(sample)
        assert not x_real.requires_grad and torch.equal(x_real, sample.x_real)
        wanted = objectives.term_weight(
            sample.x0, sample.x_real, sample.fisher_weight, method.weighting, 0.5
        )
        assert torch.equal(weight, wanted) and weight.shape == sample.x0.shape[:1]
        assert weighting == "normalized" or weight.max() <= 0.5
