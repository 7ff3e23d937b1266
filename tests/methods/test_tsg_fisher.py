"""TSG-Fisher is SGMD without its potentials."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.methods import SGMD, TSGFisher
from lightx2v_sgmd.objectives import Weighting
from tests.methods.samples import WEIGHTINGS, assert_same, leaves


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_sgmd_at_lambda_0_is_tsg_fisher(weighting: Weighting) -> None:
    sample = leaves()
    sgmd = SGMD(lambda_=0.0, weighting=weighting, max_weight=50.0).generator_losses(sample)
    fisher = TSGFisher(weighting=weighting, max_weight=50.0).generator_losses(sample)
    assert_same(sgmd, fisher, sample)
