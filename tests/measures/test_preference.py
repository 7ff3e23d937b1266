"""Shares, the sign test and agreement, on votes whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from lightx2v_sgmd.measures.preference import krippendorff_alpha, share_interval, sign_test

# The reliability data of Krippendorff (2011), section C: four observers, twelve units.
OBSERVED = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def judgements(rows: tuple[str, ...]) -> tuple[list[int], list[int], list[int]]:
    cells = [
        (int(value), rater, unit)
        for rater, row in enumerate(rows)
        for unit, value in enumerate(row.split())
        if value != "."
    ]
    values, raters, units = zip(*cells, strict=True)
    return list(values), list(raters), list(units)


def test_the_agreement_of_the_published_example() -> None:
    assert krippendorff_alpha(*judgements(OBSERVED)) == pytest.approx(0.743, abs=5e-4)


def test_the_agreement_by_hand() -> None:
    values, raters, units = judgements(("0 0 1 1", "0 0 1 0"))
    # Coincidences: o_00 = 4, o_01 = o_10 = 1, o_11 = 2; n_0 = 5, n_1 = 3, n = 8.
    assert krippendorff_alpha(values, raters, units) == pytest.approx(1 - 2 * 7 / (2 * 5 * 3))


def test_perfect_agreement_and_none() -> None:
    assert krippendorff_alpha(*judgements(("1 0 1", "1 0 1"))) == 1
    assert krippendorff_alpha(*judgements(("1 1", "1 1"))) is None  # nothing differs
    assert krippendorff_alpha(*judgements(("1 0 . .", ". . 1 0"))) is None  # no unit twice


def test_raters_who_guess_agree_by_chance() -> None:
    rng = np.random.default_rng(0)
    count, raters = 400, 5
    values = rng.integers(3, size=count * raters)
    alpha = krippendorff_alpha(
        values, np.tile(np.arange(raters), count), np.repeat(np.arange(count), raters)
    )
    assert alpha == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"),
    # Two tails of the binomial: 2 (C(10,0) + C(10,1)) / 2^10, and so on.
    [(9, 1, 22 / 1024), (1, 9, 22 / 1024), (6, 0, 2 / 64), (5, 5, 1.0), (0, 0, 1.0)],
)
def test_the_sign_test_is_the_binomials_two_tails(wins: int, losses: int, p_value: float) -> None:
    votes = [1] * wins + [-1] * losses + [0, 0, 0]
    found = sign_test(votes, np.arange(len(votes)))
    assert (found.wins, found.losses, found.ties) == (wins, losses, 3)
    assert found.p_value == pytest.approx(p_value)


def test_a_pair_counts_once_however_many_raters_saw_it() -> None:
    # Pair 0: two for a, one for b. Pair 1: one for each. Pair 2: b, and two ties.
    found = sign_test([1, 1, -1, 1, -1, -1, 0, 0], [0, 0, 0, 1, 1, 2, 2, 2])
    assert (found.wins, found.losses, found.ties, found.p_value) == (1, 1, 1, 1.0)


def test_the_interval_of_one_rater_is_the_bootstrap_over_pairs() -> None:
    chosen = np.arange(100) < 65
    found = share_interval(chosen, np.zeros(100, int), np.arange(100))
    # The binomial's standard error, 0.0477, and its normal interval.
    assert found.mean == 0.65 and found.low is not None and found.high is not None
    assert found.low == pytest.approx(0.65 - 1.96 * 0.0477, abs=0.02)
    assert found.high == pytest.approx(0.65 + 1.96 * 0.0477, abs=0.02)


def test_raters_who_disagree_make_the_interval_wider() -> None:
    # Ten raters on ten pairs: half of the raters always choose a. Over pairs alone the share
    # would be exactly one half in each draw; over raters its standard error is 0.158.
    raters, pairs = np.repeat(np.arange(10), 10), np.tile(np.arange(10), 10)
    found = share_interval(raters < 5, raters, pairs)
    assert found.mean == 0.5 and found.low is not None and found.high is not None
    assert found.low == pytest.approx(0.5 - 1.96 * 0.158, abs=0.06)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.158, abs=0.06)


def test_one_pair_has_no_interval() -> None:
    found = share_interval(np.array([True, False]), [0, 1], [0, 0])
    assert (found.mean, found.low, found.high) == (0.5, None, None)
