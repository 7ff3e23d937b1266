"""The plots show the numbers of metrics.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightx2v_sgmd.apps.evaluation.page import side_names
from lightx2v_sgmd.apps.evaluation.plots import difference_plot, motion_histogram, motion_pairs
from lightx2v_sgmd.apps.evaluation.summary import summarise
from tests.apps.evaluation.test_page import BOTH, OURS, SEEDS


def test_the_histogram_has_all_videos_of_both_sides() -> None:
    axes: Any = motion_histogram(BOTH, side_names(BOTH)).axes[0]
    filled = [patch for patch in axes.patches if patch.get_fill()]
    assert [float(np.sum(patch.get_data().values)) for patch in filled] == [1, 1]


def test_each_video_is_a_point_beside_its_reference() -> None:
    axes: Any = motion_pairs(BOTH, side_names(BOTH)).axes[0]
    points = axes.lines[1]
    assert list(points.get_xdata()) == [2, 8, 3, 9] and list(points.get_ydata()) == [1, 5, 2, 6]


def test_differences_are_in_the_references_standard_deviations() -> None:
    figure = difference_plot(BOTH)
    assert figure is not None
    mean: Any = figure.axes[0].lines[2].get_xdata()
    assert float(np.asarray(mean)[0]) == pytest.approx(-2 / np.std([2.0, 8.0, 3.0, 9.0]))
    still = summarise({"weights": OURS, "against": OURS}, ["a"] * 4, SEEDS, ["brightness"])
    assert difference_plot(still) is None  # the reference does not vary
