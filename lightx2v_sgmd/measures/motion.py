"""Measures the distribution of motion over videos: a mean hides that the fast ones are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.floating[Any]]


@dataclass(frozen=True)
class MotionShares:
    """The motion of a set of videos beside that of a reference.

    Attributes:
        slow: Share of videos that move less than the slowest quarter of the reference.
        fast: Share of videos that move more than the fastest quarter of the reference does at
            least. Both are 0.25 for a set that moves as the reference does.
        slow_below: The reference's first quartile of OptFlow.
        fast_above: The third quartile of the same.
        distance: Wasserstein-1 distance of the two distributions of OptFlow, in pixels per frame:
            how far the motion of a video must change on average to turn one set into the other.
    """

    slow: float
    fast: float
    slow_below: float
    fast_above: float
    distance: float


def motion_shares(flows: Values, reference: Values) -> MotionShares:
    """Compares the OptFlow of videos with that of a reference.

    Args:
        flows: One value for each video.
        reference: One value for each video of the reference; the numbers may differ.
    """
    ours, theirs = np.asarray(flows, np.float64), np.asarray(reference, np.float64)
    slow_below, fast_above = np.quantile(theirs, [0.25, 0.75])
    return MotionShares(
        slow=float((ours < slow_below).mean()),
        fast=float((ours > fast_above).mean()),
        slow_below=float(slow_below),
        fast_above=float(fast_above),
        distance=wasserstein(ours, theirs),
    )


def wasserstein(first: Values, second: Values) -> float:
    """Wasserstein-1 distance of two samples: the area between their distribution functions."""
    a, b = np.sort(np.asarray(first, np.float64)), np.sort(np.asarray(second, np.float64))
    every = np.sort(np.concatenate([a, b]))
    below_a = np.searchsorted(a, every[:-1], side="right") / len(a)
    below_b = np.searchsorted(b, every[:-1], side="right") / len(b)
    return float((np.abs(below_a - below_b) * np.diff(every)).sum())
