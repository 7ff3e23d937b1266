"""The demo's curves: which of a run's numbers are drawn, and how they are smoothed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lightx2v_sgmd.apps.report import _curve, _series, running_mean


def test_a_series_is_what_a_run_has_and_is_finite() -> None:
    trace: list[dict[str, Any]] = [
        {"step": 1, "fisher": 2.0, "nr": math.nan, "grad_norm": {"student": 0.5}},
        {"step": 2, "fisher": math.inf, "nr": None, "grad_norm": {"student": 0.25}},
        {"step": 3, "fisher": 1.0, "grad_norm": {}},
    ]
    series = list(_series(trace).items())
    assert [title.split(":")[0].split(",")[0] for title, _ in series] == [
        "Fisher",
        "Gradient norm of the student",
    ]
    assert series[0][1] == ([1, 3], [2.0, 1.0]) and series[1][1] == ([1, 2], [0.5, 0.25])
    assert _series([]) == {}


def test_the_mean_is_over_a_twentieth_of_the_run() -> None:
    assert running_mean([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    mean = running_mean([float(i) for i in range(60)])  # three at a time
    assert mean[:4] == [0.0, 0.5, 1.0, 2.0] and mean[-1] == 58.0


def test_a_spike_does_not_flatten_a_curve() -> None:
    values = [1.0 + 0.01 * i for i in range(200)]
    values[100] = 1e6
    (axes,) = _curve(list(range(200)), values).axes
    low, high = axes.get_ylim()
    assert low == pytest.approx(1.0, abs=0.05) and high < 4
    thin, thick = axes.get_lines()
    assert np.size(thin.get_xdata()) == np.size(thick.get_xdata()) == 200
