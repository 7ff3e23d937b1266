"""Measures the distribution of motion over videos: a mean hides that the fast ones are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.measures.bootstrap import LEVEL, RESAMPLES

_AT_ONCE: Final = 2**21
"""Values of one side that are drawn at once."""
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


Intervals = dict[str, tuple[float, float]]


def motion_intervals(
    flows: Values, reference: Values, prompts: int, seed: int = 0, resamples: int = RESAMPLES
) -> Intervals | None:
    """The percentile bootstrap's 95% intervals of ``slow``, ``fast`` and ``distance``.

    Prompts are drawn with the videos of both sides, so the reference's quartiles are drawn too. A
    draw has videos twice, which makes distances larger, as with a smaller set: the interval of
    ``distance`` reaches rather too high than too low.

    Args:
        flows: One value for each video: all prompts of the first seed, then of the next one.
        reference: The same of the reference.
        prompts: Number of prompts.
        seed: Seed of the draws.
        resamples: Number of draws of as many prompts as there are.

    Returns:
        The lower and upper end by name; None with one prompt, which tells nothing of the spread.
    """
    if prompts < 2:
        return None
    # R draws, S seeds, P prompts.
    ours_SP, theirs_SP = (
        np.asarray(v, np.float64).reshape(-1, prompts) for v in (flows, reference)
    )
    drawn_RP = np.random.default_rng(seed).integers(prompts, size=(resamples, prompts))
    parts: list[NDArray[np.float64]] = []
    for some in np.array_split(drawn_RP, max(1, resamples * ours_SP.size // _AT_ONCE)):
        ours, theirs = (
            np.sort(side[:, some].transpose(1, 0, 2).reshape(len(some), -1), axis=1)
            for side in (ours_SP, theirs_SP)
        )
        low, high = np.quantile(theirs, [0.25, 0.75], axis=1, keepdims=True)
        # Of sets of one size, the distance is that of the sorted values.
        distances = np.abs(ours - theirs).mean(1)
        parts.append(np.stack([(ours < low).mean(1), (ours > high).mean(1), distances]))
    ends = np.quantile(np.concatenate(parts, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    names = ("slow", "fast", "distance")
    return {name: (float(a), float(b)) for name, a, b in zip(names, *ends, strict=True)}


def wasserstein(first: Values, second: Values) -> float:
    """Wasserstein-1 distance of two samples: the area between their distribution functions."""
    a, b = np.sort(np.asarray(first, np.float64)), np.sort(np.asarray(second, np.float64))
    every = np.sort(np.concatenate([a, b]))
    below_a = np.searchsorted(a, every[:-1], side="right") / len(a)
    below_b = np.searchsorted(b, every[:-1], side="right") / len(b)
    return float((np.abs(below_a - below_b) * np.diff(every)).sum())
