"""TSG-SiM is Eq. 30 of arXiv 2605.30116 at alpha 1."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.methods import TSGSIM, SiD
from lightx2v_sgmd.objectives import Weighting
from tests.methods.samples import WEIGHTINGS, assert_same, leaves


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_sim_is_eq_30_at_alpha_1(weighting: Weighting) -> None:
    sample = leaves()
    sim = TSGSIM(weighting=weighting, max_weight=50.0).generator_losses(sample)
    sid = SiD(form="paper", alpha=1.0, weighting=weighting, max_weight=50.0)
    assert_same(sid.generator_losses(sample), sim, sample)
