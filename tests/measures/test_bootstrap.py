"""Bootstrap intervals where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from lightx2v_sgmd.measures.bootstrap import Interval, mean_interval


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([[0.5, 0.5]] * 4) == Interval(0.5, 0.5, 0.5)


def test_one_prompt_has_no_interval() -> None:
    assert mean_interval([[1.0, 2.0, 6.0]]) == Interval(3.0, None, None)


def test_two_prompts_give_three_means() -> None:
    """One of the four pairs that can be drawn has mean 0, two have 1 and one has 2."""
    result = mean_interval([[0.0], [2.0]])
    assert (result.mean, result.low, result.high) == (1, 0, 2)


def test_the_interval_of_a_gaussian_is_that_of_its_mean() -> None:
    values = np.random.default_rng(1).normal(size=400)
    result = mean_interval([[value] for value in values])
    error = values.std() / 20
    assert result.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert result.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_videos_of_a_prompt_are_drawn_together() -> None:
    """Ten equal videos of each prompt say no more than one of each."""
    values = np.random.default_rng(2).normal(size=50)
    once, often = (mean_interval([[value] * n for value in values]) for n in (1, 10))
    assert often.low == pytest.approx(once.low) and often.high == pytest.approx(once.high)
