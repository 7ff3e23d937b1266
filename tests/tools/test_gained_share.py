"""The share of a gain that another row keeps, on rows whose answer is known."""

import numpy as np

from tools.figures.gained_share import Right, interval, share_kept


def right(*shares: float, captions: int = 100) -> Right:
    """For each seed, the first captions right in that share."""
    return np.array([np.arange(captions) < round(share * captions) for share in shares])


def test_the_share_is_of_the_mean_gains() -> None:
    share = share_kept(right(0.6, 0.5), right(0.8, 0.9), right(0.75, 0.9))
    assert np.isclose(share, (0.15 + 0.4) / (0.2 + 0.4))


def test_a_row_that_is_the_full_one_keeps_all_whatever_is_drawn() -> None:
    full = right(0.8, 0.9, 0.85)
    assert interval(right(0.6, 0.6, 0.6), full, full, draws=200) == (1.0, 1.0)


def test_the_interval_covers_the_share_and_narrows_with_captions() -> None:
    widths = []
    for captions in (50, 5000):
        rng = np.random.default_rng(1)
        base, full, other = (rng.random((4, captions)) < share for share in (0.6, 0.8, 0.79))
        low, high = interval(base, full, other, draws=500)
        assert low < share_kept(base, full, other) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4
