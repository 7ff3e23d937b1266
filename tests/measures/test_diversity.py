"""Distances of videos, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightx2v_sgmd.measures.diversity import pairwise_distance


def test_distance_of_videos_is_a_root_mean_square_in_units_of_the_range() -> None:
    videos = np.zeros((3, 5, 4, 4, 3), np.uint8)
    videos[1] = 51  # a fifth of 255 everywhere
    videos[2, :, :, :2] = 102  # two fifths in half of the pixels
    first, second = 0.2, 0.4 * 0.5**0.5
    third = 0.2  # 51 everywhere, up or down
    assert pairwise_distance(videos) == pytest.approx((first + second + third) / 3)
    assert pairwise_distance(videos[:1]) == 0
