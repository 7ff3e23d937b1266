"""Frechet distance of two sets of features, taken as Gaussians."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating[Any]]


def gaussian_distance(
    first: Features, second: Features, units: NDArray[np.float64] | None = None
) -> float:
    """Frechet distance of two sets of features taken as Gaussians (FID's formula, 1706.08500).

    ``|mean_1 - mean_2|^2 + trace(cov_1 + cov_2 - 2 (cov_1 cov_2)^(1/2))``, with the unbiased
    covariances of the two samples.

    Args:
        first: ``[N, D]``, N at least 2.
        second: ``[M, D]``.
        units: ``[D]``, the divisor of each feature; 1 by default.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    if units is not None:
        a, b = a / units, b / units
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # The trace of the square root of cov_a cov_b, through a symmetric product.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return float(max(distance, 0.0))
