"""Measures of a pairwise study: shares of answers with intervals, the sign test, and agreement.

Legend: N votes, R raters, P pairs of videos. A vote is +1 for a, -1 for b, and 0 for a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.measures.bootstrap import LEVEL, RESAMPLES, Interval

Votes = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class SignTest:
    """The sign test over pairs of videos.

    Attributes:
        wins: Pairs in which more votes are for a than for b.
        losses: Pairs in which more votes are for b.
        ties: Pairs with as many votes for either; they say nothing and are left out.
        p_value: Probability of a split as uneven as this or more so, in either direction, if a
            pair were as likely to be won as to be lost; 1 without wins and losses.
    """

    wins: int
    losses: int
    ties: int
    p_value: float


def share_interval(
    chosen: NDArray[np.bool_],
    raters: Votes,
    pairs: Votes,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """A share of votes with its 95% interval, for other raters and other videos.

    Votes of one rater resemble one another, and so do votes on one pair. So raters and pairs are
    drawn independently, each with all its votes: the pigeonhole bootstrap (Owen 2007, Annals of
    Applied Statistics 1:386), whose intervals are rather too wide than too narrow.

    Args:
        chosen: ``[N]``; True for the votes that are counted.
        raters: ``[N]``; the number of each vote's rater.
        pairs: ``[N]``; the number of each vote's pair.
        seed: Seed of the draws.
        resamples: Number of draws.

    Returns:
        The share of True; without an interval if all votes are on one pair.
    """
    mean = float(chosen.mean())
    found, pair = np.unique(np.asarray(pairs), return_inverse=True)
    judges, rater = np.unique(np.asarray(raters), return_inverse=True)
    if len(found) < 2:
        return Interval(mean, None, None)
    # Votes are summed in cells [P, R] first: a weight for each of N votes would fill the memory.
    cells = np.zeros((2, len(found), len(judges)))
    np.add.at(cells[0], (pair, rater), 1)
    np.add.at(cells[1], (pair, rater), chosen)
    rng = np.random.default_rng(seed)
    # A single rater cannot be drawn: the interval then is for this rater and other videos.
    of_pairs, of_raters = (
        rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
        for count in (len(found), len(judges))
    )
    total, counted = (((of_pairs @ cell) * of_raters).sum(1) for cell in cells)
    shares = counted[total > 0] / total[total > 0]
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def sign_test(votes: Votes, pairs: Votes) -> SignTest:
    """The exact two-sided sign test, with pairs of videos as its units.

    Raters who see the same two videos do not answer independently, so a pair counts once, for the
    side with more votes.

    Args:
        votes: ``[N]``.
        pairs: ``[N]``; the number of each vote's pair.
    """
    of, values = np.asarray(pairs), np.asarray(votes)
    balance = [int(values[of == pair].sum()) for pair in np.unique(of)]
    wins, losses = sum(b > 0 for b in balance), sum(b < 0 for b in balance)
    count, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    return SignTest(wins, losses, len(balance) - count, min(1.0, 2 * tail))


def krippendorff_alpha(values: Votes, raters: Votes, units: Votes) -> float | None:
    """Krippendorff's alpha for categories without order; raters may have left units out.

    1 is perfect agreement, 0 what chance gives. Krippendorff, Computing Krippendorff's
    Alpha-Reliability (2011), section C: alpha = 1 - D_o / D_e over the coincidences of values.

    Args:
        values: ``[N]``; the category that was chosen.
        raters: ``[N]``; who chose it. A rater's last value for a unit counts.
        units: ``[N]``; what was judged.

    Returns:
        None if no unit was judged twice, or if all judgements are the same.
    """
    by_unit: dict[int, dict[int, int]] = {}
    for value, rater, unit in zip(values, raters, units, strict=True):
        by_unit.setdefault(int(unit), {})[int(rater)] = int(value)
    categories = {value: i for i, value in enumerate(sorted({int(value) for value in values}))}
    coincidences = np.zeros((len(categories), len(categories)))
    for judged in by_unit.values():
        count = len(judged)
        if count < 2:
            continue
        seen = np.zeros(len(categories))
        for value in judged.values():
            seen[categories[value]] += 1
        coincidences += (np.outer(seen, seen) - np.diag(seen)) / (count - 1)
    totals = coincidences.sum(0)
    pairable = totals.sum()
    if pairable == 0:
        return None
    observed = pairable - np.trace(coincidences)
    expected = (pairable**2 - (totals**2).sum()) / (pairable - 1)
    return None if expected == 0 else float(1 - observed / expected)
