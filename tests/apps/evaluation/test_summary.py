"""The content of metrics.json, worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightx2v_sgmd.apps.evaluation.summary import (
    Side,
    by_prompt,
    cautions,
    floor,
    summarise,
)

SIZE = {"fps": 8.0, "height": 32, "width": 32, "num_frames": 9}
KEYS = (
    *("optflow", "dynamic", "flicker", "change", "sharpness"),
    *("colourfulness", "brightness", "contrast", "saturation"),
)


def side(flows: list[float], **same: Any) -> Side:
    values = [{**dict.fromkeys(KEYS, 0.5), **SIZE, "optflow": flow, **same} for flow in flows]
    return Side({"path": "x", "kind": "videos"}, [f"{i}.mp4" for i in range(len(flows))], values)


def test_videos_are_grouped_by_prompt_with_the_seeds_outermost() -> None:
    assert by_prompt(np.array([1.0, 2.0, 3.0, 4.0]), 2) == [[1, 3], [2, 4]]


def test_differences_are_paired_and_relative_to_the_reference() -> None:
    """Two prompts, two seeds; the first prompt moves 1 less, the second 3 less."""
    ours, theirs = side([1.0, 5.0, 2.0, 6.0]), side([2.0, 8.0, 3.0, 9.0])
    result = summarise({"weights": ours, "against": theirs}, ["a", "b"], [0, 1, 2, 3], ["optflow"])
    difference = result["differences"]["optflow"]
    assert (difference["mean"], difference["low"], difference["high"]) == (-2, -3, -1)
    assert difference["relative"] == pytest.approx(-2 / 5.5) and difference["clear"]
    spread = np.std([2.0, 8.0, 3.0, 9.0])
    assert result["ranking"]["scores"] == pytest.approx([1 / spread, 3 / spread])
    assert [video["prompt"] for video in result["videos"]] == ["a", "b", "a", "b"]


def test_equal_sides_do_not_differ() -> None:
    one = side([1.0, 2.0, 3.0])
    result = summarise({"weights": one, "against": one}, ["a", "b", "c"], [0, 1, 2], ["optflow"])
    assert result["differences"]["optflow"]["clear"] is False
    assert result["ranking"]["scores"] == [0, 0, 0] and result["cautions"] == []


def test_without_a_reference_prompts_are_ranked_by_motion() -> None:
    result = summarise({"weights": side([1.0, 2.0, 3.0, 6.0])}, ["a", "b"], [0, 1, 2, 3], [])
    assert result["ranking"]["scores"] == [2, 4] and "differences" not in result


def test_sides_that_differ_in_kind_get_a_caution() -> None:
    (first, second) = cautions(side([1.0], fps=16.0, width=64), side([1.0]))
    assert "frame rates" in first and "widths" in second


def test_the_floor_is_what_chance_alone_gives() -> None:
    """Halves of n Gaussian values in one dimension: the mean's part alone is 2 / (n / 2)."""
    values = np.random.default_rng(0).normal(size=(2000, 1))
    result = floor(values)
    assert result is not None and 1e-5 < result < 0.02
    assert floor(values[:3]) is None
    assert floor(np.zeros((8, 2))) == 0
