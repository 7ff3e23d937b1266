"""SiD: its two published forms, and the gradient paths of Eq. 31 and 32 of arXiv 2605.30116."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightx2v_sgmd import flow
from lightx2v_sgmd.methods import SiD
from lightx2v_sgmd.objectives import Weighting
from tests.methods.samples import LEAVES, WEIGHTINGS, assert_same, gradients, leaves


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2, -2.5])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_two_forms_of_sid_are_one_up_to_scale(alpha: float, weighting: Weighting) -> None:
    """Published at ``1 - 1 / (2 alpha)`` times alpha is Eq. 30 at alpha, the teacher stopped alike.

    Alpha 0.5 is published 0, -2.5 is published 1.2, and published 1 is at no finite alpha.
    """
    sample = leaves()
    assert sample.x_real is not None
    stopped = replace(sample, x_real=sample.x_real.detach())
    paper = SiD(form="paper", alpha=alpha, weighting=weighting, max_weight=50.0)
    own = SiD(alpha=1 - 1 / (2 * alpha), weighting=weighting, max_weight=50.0)
    theirs = own.generator_losses(stopped)
    assert_same(paper.generator_losses(sample), theirs, sample, factor=alpha)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_eq_31_and_both_paths_of_eq_32(alpha: float) -> None:
    sample = leaves()
    method = SiD(form="paper", alpha=alpha, weighting="paper", max_weight=1e12)
    losses = method.generator_losses(sample)
    assert sample.x_real is not None
    x0, x_fake, x_real = (getattr(sample, name).detach().flatten(1) for name in LEAVES)
    size, c = x0.shape[1], flow.fisher_weight(sample.sigma)
    inner = (
        (x_real**2).sum(1) / 2
        + (0.5 - alpha) * (x_fake**2).sum(1)
        + (alpha - 1) * (x_fake * x_real).sum(1)
        + alpha * (x0 * x_fake).sum(1)
        - alpha * (x0 * x_real).sum(1)
    )
    torch.testing.assert_close(sum(losses.values()), c * inner / size, rtol=1e-9, atol=0)
    to_x0, to_fake, to_real = gradients(losses, sample)
    weight = (c / size)[:, None]
    through = weight * (alpha * (x0 - x_fake) + (1 - alpha) * (x_fake - x_real))
    assert to_real is None and to_x0 is not None and to_fake is not None
    torch.testing.assert_close(to_fake.flatten(1), through, rtol=1e-9, atol=1e-12)
    straight = weight * alpha * (x_fake - x_real)
    torch.testing.assert_close(to_x0.flatten(1), straight, rtol=1e-9, atol=1e-12)
