"""Measurements are kept by content and by rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightx2v_sgmd.apps.evaluation.measuring import Measurements, frames_of, small_frames
from lightx2v_sgmd.files.video import write_video
from lightx2v_sgmd.outputs import WrittenFiles
from lightx2v_sgmd.system.errors import UserError


def test_equal_contents_are_measured_once_and_other_rules_anew(tmp_path: Path) -> None:
    seen: list[int] = []

    def measured(rules: Any, keys: list[str]) -> list[Any]:
        store = Measurements(WrittenFiles(tmp_path), "m/x.json", rules)

        def measure(index: int) -> int:
            seen.append(index)
            return index

        return store.of(keys, measure, "measuring", True)

    assert measured(1, ["a", "b", "a"]) == [0, 1, 0] and seen == [0, 1]
    assert measured(1, ["c", "b"]) == [0, 1] and seen == [0, 1, 0]
    assert measured(2, ["b"]) == [0] and seen == [0, 1, 0, 0]


def test_a_record_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    Measurements(WrittenFiles(tmp_path), "x.json").of(["a"], lambda index: 1, "m", True)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="x.json would be replaced"):
        Measurements(WrittenFiles(tmp_path), "x.json")


def test_large_frames_are_reduced_to_64_pixels() -> None:
    video = np.full((3, 128, 256, 3), 7, np.uint8)
    assert small_frames(video).shape == (3, 64, 128, 3) and small_frames(video).max() == 7
    assert small_frames(video[:, :32, :32]).shape == (3, 32, 32, 3)


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    write_video(np.zeros((1, 32, 32, 3), np.uint8), tmp_path / "x.mp4", 8)
    with pytest.raises(UserError, match="x.mp4: has one frame"):
        frames_of(tmp_path / "x.mp4")
