"""Bootstrap intervals of means and of differences of means, with prompts as the units.

Videos of one prompt resemble one another, so prompts are drawn with all their videos; drawing
single videos would give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

RESAMPLES: Final = 2000
LEVEL: Final = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval.

    Attributes:
        mean: The mean of all videos.
        low: Lower end; None with one prompt, which tells nothing of the spread over prompts.
        high: Upper end.
    """

    mean: float
    low: float | None
    high: float | None


def mean_interval(
    groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The mean of values, with the percentile bootstrap's 95% interval (Efron 1979).

    Args:
        groups: The values of each prompt; for a paired difference, the differences of its videos.
        seed: Seed of the draws.
        resamples: Number of draws of as many prompts as there are.
    """
    sums = np.array([float(np.sum(group)) for group in groups])
    counts = np.array([len(group) for group in groups], dtype=np.float64)
    mean = float(sums.sum() / counts.sum())
    if len(groups) < 2:
        return Interval(mean, None, None)
    drawn = np.random.default_rng(seed).integers(len(groups), size=(resamples, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))
