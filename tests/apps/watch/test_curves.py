"""Curves: which there are, in which order, and how long ones are shortened."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.apps.watch.curves import MOST_POINTS, curves, shortened


def test_samples_come_first_and_have_the_teachers_value() -> None:
    lines = [
        {"step": 1, "fisher": 2.0, "lr": {"student": 0.5}, "forwards": {"student": 1}},
        {
            "step": 2,
            "fisher": 1.0,
            "lr": {"student": 0.25},
            "samples": {"optflow": 0.2, "frechet": 3.0},
            "teacher_samples": {"optflow": 0.25},
            "fisher_like": None,
        },
    ]
    found = curves(lines)
    assert [c.key for c in found] == ["samples/optflow", "samples/frechet", "fisher", "lr/student"]
    assert (found[0].steps, found[0].values, found[0].teacher) == ([2], [0.2], 0.25)
    assert found[1].teacher is None and found[2].values == [2.0, 1.0]
    assert all(curve.expected.endswith(".") for curve in found)


def test_a_value_that_is_not_finite_is_left_out() -> None:
    lines = [{"step": 1, "nr": float("inf")}, {"step": 2, "nr": -1.0}]
    (curve,) = curves(lines)
    assert (curve.steps, curve.values) == ([2], [-1.0])


@pytest.mark.parametrize("count", [1, 399, 400, 401, 12_345])
def test_a_long_curve_keeps_its_mean_and_its_end(count: int) -> None:
    steps = list(range(1, count + 1))
    shown, means = shortened(steps, [float(step) for step in steps])
    assert len(shown) == len(means) <= MOST_POINTS and shown[-1] == count
    assert means[0] == pytest.approx((1 + shown[0]) / 2)


def test_an_empty_run_has_no_curves() -> None:
    assert curves([]) == [] and shortened([], []) == ([], [])
