"""The Frechet distance against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from lightx2v_sgmd.measures.frechet import gaussian_distance


def exact_sample(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A sample whose own mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_commuting_covariances_have_a_closed_form() -> None:
    """For diagonal ones the distance is |difference of means|^2 + sum (s_1 - s_2)^2."""
    first = exact_sample(np.zeros(3), np.diag([1.0, 4.0, 9.0]), 50, 0)
    second = exact_sample(np.array([1.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]), 70, 1)
    assert gaussian_distance(first, second) == pytest.approx(9 + 1 + 0 + 4)
    assert gaussian_distance(second, first) == pytest.approx(14)


def test_correlated_gaussians() -> None:
    """Against scipy's rule written out: the trace of the root of a product of 2 x 2 matrices.

    ``trace(M^(1/2)) = sqrt(trace(M) + 2 sqrt(det(M)))`` for a 2 x 2 matrix M.
    """
    one, two = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    product = one @ two
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    first, second = (exact_sample(np.zeros(2), c, 40, s) for c, s in ((one, 2), (two, 3)))
    assert gaussian_distance(first, second) == pytest.approx(3 + 4 - 2 * cross)


def test_units_divide_the_features() -> None:
    first = exact_sample(np.zeros(2), np.eye(2), 30, 4)
    shifted = first + np.array([3.0, 8.0])
    assert gaussian_distance(first, shifted, np.array([3.0, 4.0])) == pytest.approx(1 + 4)


def test_fewer_videos_than_features_are_no_error() -> None:
    values = np.random.default_rng(5).normal(size=(4, 20))
    assert gaussian_distance(values, values) == pytest.approx(0, abs=1e-6)
    assert gaussian_distance(values, values + 1) == pytest.approx(20)
