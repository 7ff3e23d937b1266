"""Copies that show the same picture and tell nothing else, and copies that are clearly worse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightx2v_sgmd.apps.study.neutral import copy_picture, picture_of, spoiled
from lightx2v_sgmd.files.video import read_video, write_video
from lightx2v_sgmd.system.errors import UserError
from tests.apps.study.conftest import square_video


def test_a_copy_has_the_picture_bit_for_bit_and_no_name_of_a_program(tmp_path: Path) -> None:
    video = write_video(square_video(4, 90), tmp_path / "video.mp4", 8)
    about = picture_of(video)
    assert (about.width, about.height, about.fps, about.codec) == (48, 32, 8, "h264")
    copy_picture(video, tmp_path / "copy.mp4", about.codec)
    before, after = video.read_bytes(), (tmp_path / "copy.mp4").read_bytes()
    names = (b"x264", b"Lavf", b"Lavc")
    assert any(name in before for name in names) and not any(name in after for name in names)
    (frames, fps), (same, same_fps) = read_video(video), read_video(tmp_path / "copy.mp4")
    np.testing.assert_array_equal(frames, same)
    assert fps == same_fps


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read as a video"):
        picture_of(tmp_path / "video.mp4")
    with pytest.raises(UserError, match="cannot be copied"):
        copy_picture(tmp_path / "video.mp4", tmp_path / "copy.mp4", "h264")
    # A playlist that names another file is not followed.
    write_video(square_video(4, 90), tmp_path / "secret.mp4", 8)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(UserError, match="cannot be copied"):
        copy_picture(tmp_path / "list.mp4", tmp_path / "copy.mp4", "h264")


def test_a_spoiled_video_is_coarse_and_stands_still_between_jumps() -> None:
    video = np.random.default_rng(0).integers(256, size=(10, 40, 60, 3)).astype(np.uint8)
    worse = spoiled(video)
    assert worse.shape == video.shape and worse.dtype == video.dtype
    for start in (0, 4, 8):
        assert all((frame == worse[start]).all() for frame in worse[start : start + 4])
    assert (worse[3] != worse[4]).any()
    # Ten blocks on the shorter side: 4 x 4 pixels each.
    assert (worse[0, :4, :4] == worse[0, 0, 0]).all() and (worse[0, 3] != worse[0, 4]).any()
