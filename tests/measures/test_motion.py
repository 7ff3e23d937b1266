"""Shares of slow and fast videos, and the distance of distributions, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightx2v_sgmd.measures import motion
from lightx2v_sgmd.measures.motion import motion_intervals, motion_shares, wasserstein


def test_a_set_beside_itself_has_a_quarter_of_each() -> None:
    flows = np.arange(100.0)
    result = motion_shares(flows, flows)
    assert (result.slow, result.fast, result.distance) == (0.25, 0.25, 0)
    assert (result.slow_below, result.fast_above) == (24.75, 74.25)


def test_the_same_mean_hides_that_the_fast_ones_are_gone() -> None:
    reference = [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    result = motion_shares([1.5] * 8, reference)
    assert np.mean(reference) == 1.5 and result.fast == result.slow == 0
    assert result.distance == 1  # half of the reference is 1.5 away, half is 0.5


def test_slow_videos_are_counted() -> None:
    result = motion_shares([0.1, 0.2, 5.0, 9.0], [0.0, 1.0, 2.0, 3.0, 4.0])
    assert (result.slow_below, result.fast_above) == (1, 3)
    assert (result.slow, result.fast) == (0.5, 0.5)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (2.0, 2.0), (-1.5, 1.5)])
def test_a_shift_is_its_own_distance(shift: float, expected: float) -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert wasserstein(values, values + shift) == pytest.approx(expected)


def test_two_prompts_have_intervals_by_hand() -> None:
    """Four draws are equally likely: each prompt twice, and both prompts in either order."""
    found = motion_intervals([1.0, 3.0], [1.0, 1.0], 2)
    assert found == {"slow": (0, 0), "fast": (0, 1), "distance": (0, 2)}
    assert motion_intervals([1.0, 3.0], [1.0, 1.0], 1) is None


def test_intervals_are_the_quantiles_over_drawn_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a plain loop, with two seeds of seven prompts."""
    ours, theirs = np.random.default_rng(3).normal(size=(2, 2, 7))
    monkeypatch.setattr(motion, "_AT_ONCE", 500)  # in several parts
    found = motion_intervals(ours.ravel(), theirs.ravel(), 7, seed=5, resamples=200)
    draws = np.random.default_rng(5).integers(7, size=(200, 7))
    shares = [motion_shares(ours[:, d].ravel(), theirs[:, d].ravel()) for d in draws]
    assert found is not None
    for name, ends in found.items():
        values = [getattr(share, name) for share in shares]
        assert ends == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_sets_of_different_sizes() -> None:
    assert wasserstein([0.0], [1.0, 3.0]) == pytest.approx(2)
