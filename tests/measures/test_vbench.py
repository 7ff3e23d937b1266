"""VBench's aggregate against the ADM paper (arXiv 2507.18569), which prints both ends of it.

Tables 8 and 9 have the 16 scores of a model in percent with two decimals, Table 3 the aggregates
with three. Table 8 repeats these aggregates with two decimals, cut off and not rounded (81.796 is
81.79 there, 83.227 is 83.22), so a printed score stands for the value and up to 0.01 more: the
tests take the middle.
"""

from __future__ import annotations

import pytest

from lightx2v_sgmd.measures.vbench import DIMENSIONS, aggregate

# Table 3: Final, Quality, Semantic. Table 8: seven dimensions of quality. Table 9: nine of
# semantics. The rows are in the papers' order; two of them are called ADM, of two teachers.
ROWS = {
    "ADM, 2b": (
        (78.584, 80.825, 69.621),
        (96.72, 96.55, 97.01, 98.14, 48.61, 57.80, 65.28),
        (83.97, 47.19, 87.40, 77.79, 62.93, 42.64, 24.16, 22.35, 25.27),
    ),
    "ADM longer, 2b": (
        (80.764, 83.031, 71.693),
        (96.58, 96.71, 98.12, 97.68, 73.33, 57.90, 65.72),
        (87.84, 56.53, 85.00, 80.28, 69.52, 44.33, 23.15, 22.60, 25.11),
    ),
    "ADM with CFG, 2b": (
        (79.865, 80.938, 75.569),
        (96.16, 96.96, 96.86, 97.69, 54.44, 59.78, 63.18),
        (89.55, 64.78, 92.60, 82.31, 62.61, 52.73, 24.31, 24.46, 26.12),
    ),
    "ADM with CFG longer, 2b": (
        (81.796, 83.008, 76.947),
        (96.83, 96.90, 98.51, 98.07, 63.05, 61.03, 64.62),
        (91.67, 71.58, 92.20, 82.01, 71.79, 50.26, 23.54, 24.54, 26.30),
    ),
    "CogVideoX-2b": (
        (80.036, 80.801, 76.974),
        (92.53, 95.22, 97.79, 97.00, 69.44, 60.38, 60.69),
        (80.01, 67.23, 98.60, 89.98, 49.05, 68.60, 24.04, 25.37, 25.68),
    ),
    "ADM, 5b": (
        (82.067, 83.227, 77.423),
        (96.42, 96.87, 96.96, 97.69, 68.88, 61.17, 69.01),
        (92.94, 65.89, 95.80, 84.97, 72.92, 56.06, 22.63, 23.64, 26.17),
    ),
    "ADM with CFG, 5b": (
        (80.982, 82.165, 76.251),
        (96.15, 96.59, 95.99, 98.57, 56.66, 61.01, 68.68),
        (89.41, 69.89, 97.00, 71.35, 81.26, 53.90, 21.48, 23.79, 25.92),
    ),
    "CogVideoX-5b": (
        (81.226, 81.785, 78.987),
        (92.52, 96.68, 98.34, 96.97, 70.55, 61.67, 61.88),
        (87.64, 67.34, 99.60, 83.93, 68.24, 56.35, 25.16, 25.82, 27.79),
    ),
}
CUT_OFF = 0.01
"""Percent by which a printed score may be below the score."""


@pytest.mark.parametrize("row", ROWS)
def test_the_tables_of_the_adm_paper_agree_with_each_other(row: str) -> None:
    printed, quality, semantic = ROWS[row]
    scores = {
        name: (value + CUT_OFF / 2) / 100
        for name, value in zip(DIMENSIONS, quality + semantic, strict=True)
    }
    found = aggregate(scores)
    assert found.total is not None and found.quality is not None and found.semantic is not None
    for value, expected in zip((found.total, found.quality, found.semantic), printed, strict=True):
        assert 100 * value == pytest.approx(expected, abs=0.02)


def test_the_least_and_the_largest_values_are_0_and_1() -> None:
    least = aggregate({name: about.low for name, about in DIMENSIONS.items()})
    largest = aggregate({name: about.high for name, about in DIMENSIONS.items()})
    for value, expected in ((least, 0), (largest, 1)):
        assert (value.quality, value.semantic, value.total) == pytest.approx([expected] * 3)


def test_a_dimension_counts_as_its_weight_says() -> None:
    scores = {name: about.low for name, about in DIMENSIONS.items()}
    only = {name: aggregate(scores | {name: DIMENSIONS[name].high}).total for name in DIMENSIONS}
    assert only["subject_consistency"] == pytest.approx(0.8 / 6.5)
    assert only["dynamic_degree"] == pytest.approx(0.8 * 0.5 / 6.5)
    assert only["scene"] == pytest.approx(0.2 / 9)


def test_a_missing_dimension_gives_no_number() -> None:
    scores = dict.fromkeys(DIMENSIONS, 0.5)
    del scores["scene"]
    found = aggregate(scores)
    assert found.quality is not None and found.semantic is None and found.total is None
    with pytest.raises(ValueError, match="speed is not a dimension"):
        aggregate({"speed": 1})
