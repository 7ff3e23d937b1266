from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from lightx2v_sgmd.files import video as videos
from lightx2v_sgmd.files.video import (
    check_writable,
    contact_sheet,
    read_frames,
    read_video,
    write_frames,
    write_video,
)
from lightx2v_sgmd.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def moving_square(frames: int, height: int, width: int) -> np.ndarray:
    video = np.full((frames, height, width, 3), 30, np.uint8)
    for i in range(frames):
        video[i, 8:16, 4 + i : 12 + i] = (232, 48, 48)
    return video


@pytest.mark.parametrize(
    ("height", "width", "fps"), [(32, 32, 8), (48, 80, 16), (33, 47, 8), (34, 50, 23.976)]
)
def test_size_frames_and_rate_are_kept(tmp_path: Path, height: int, width: int, fps: float) -> None:
    video = moving_square(9, height, width)
    path = write_video(video, tmp_path / "new" / "a.mp4", fps)
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]

    read, rate = read_video(path)
    assert read.shape == video.shape
    assert rate == pytest.approx(fps, abs=0.01)
    # Colours survive: the middle of the square in the last frame, the background far from it.
    assert np.abs(read[8, 12, 16].astype(int) - video[8, 12, 16]).max() < 25
    assert np.abs(read[:, 24:].astype(int) - 30).max() < 8

    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 9
    assert capture.get(cv2.CAP_PROP_FRAME_WIDTH) == width
    assert capture.get(cv2.CAP_PROP_FRAME_HEIGHT) == height
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, abs=0.01)
    count = 0
    while capture.read()[0]:
        count += 1
    assert count == 9


def test_a_video_is_read_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(moving_square(9, 32, 32), tmp_path / "a.mp4", 8)
    few, _ = read_video(path, 4)
    assert len(few) == 4 and (few == read_video(path)[0][:4]).all()
    monkeypatch.setattr(videos, "MOST_BYTES", 8 * 32 * 32 * 3)
    with pytest.raises(UserError, match=r"a\.mp4: has more than .* GiB of pictures; cut it"):
        read_video(path)
    assert len(read_video(path, 8)[0]) == 8
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="is a pipe or a device"):
        read_video(tmp_path / "pipe.mp4")


def test_an_image_is_a_video_of_one_frame_and_read_within_limits_too(tmp_path: Path) -> None:
    image = moving_square(1, 32, 48)
    assert (read_frames(write_frames(image, tmp_path / "a.png", 8)) == image).all()
    video = write_frames(moving_square(9, 32, 48), tmp_path / "a.mp4", 8)
    assert read_frames(video).shape == (9, 32, 48, 3)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png: is not a PNG, JPEG or WebP image"):
        read_frames(tmp_path / "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="is a pipe or a device"):
        read_frames(tmp_path / "pipe.png")


def test_it_is_h264_that_players_show(tmp_path: Path) -> None:
    path = write_video(moving_square(5, 32, 32), tmp_path / "a.mp4", 8)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    assert "h264" in said and "yuv420p" in said
    start = path.read_bytes()
    assert start.index(b"moov") < start.index(b"mdat")  # plays while it downloads


def test_the_last_frame_is_not_lost_in_a_single_frame_video(tmp_path: Path) -> None:
    path = write_video(moving_square(1, 32, 32), tmp_path / "a.mp4", 8)
    assert read_video(path)[0].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("where", ["replace", "append", "count"])
def test_nothing_is_left_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the old file")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "replace":
        monkeypatch.setattr(os, "replace", fail)
    elif where == "append":
        real = imageio.get_writer

        def broken(*args: Any, **kwargs: Any) -> Any:
            writer = real(*args, **kwargs)
            writer.append_data = fail  # type: ignore[method-assign]
            return writer

        monkeypatch.setattr(imageio, "get_writer", broken)
    else:
        monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda path: (4, 0.5))
    with pytest.raises(UserError, match=f"{path}: cannot be written: ") as caught:
        write_video(moving_square(5, 32, 32), path, 8)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"the old file"


def test_what_is_in_the_way_is_found_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "x" / "y" / "a.mp4")
    check_writable(tmp_path / "x", folder=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="is a folder, not a file"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        check_writable(tmp_path / "file", folder=True)
    with pytest.raises(UserError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "a.mp4")
    if Path("/proc/self").exists():
        with pytest.raises(UserError, match="/proc/self/a.mp4: cannot be written"):
            check_writable("/proc/self/a.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_found_beforehand(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        check_writable(tmp_path / "a.mp4")


def test_a_contact_sheet_shows_every_video(tmp_path: Path) -> None:
    videos = [moving_square(9, 32, 32), moving_square(5, 48, 32), moving_square(1, 32, 32)]
    path = contact_sheet(videos, tmp_path / "new" / "sheet.png", captions=["a", "b", "c"])
    sheet = np.asarray(Image.open(path))
    red = (sheet == (232, 48, 48)).all(-1)
    # Enlarged to 96 pixels: a square of 8 is 24 wide; six frames, five frames, one frame.
    rows = [red[20:116], red[136:232], red[252:]]
    areas = [int(row.sum()) for row in rows]
    assert areas == [6 * 24 * 24, 5 * 16 * 16, 24 * 24]
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    "frames", [np.zeros((3, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)]
)
def test_other_arrays_are_our_mistake(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not uint8"):
        write_video(frames, tmp_path / "a.mp4", 8)


FULL_DISK = """
mount -t tmpfs -o size=4k tmpfs "$1" || exit 77
"$2" -c "
import numpy
from lightx2v_sgmd.files.video import write_video
frames = numpy.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), numpy.uint8)
write_video(frames, '$1/a.mp4', 8)
" 2>&1
ls -A "$1"
"""


def test_a_disk_that_is_full_is_told_as_such_and_ffmpeg_is_quiet(tmp_path: Path) -> None:
    command = ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", str(tmp_path), sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mounts without privileges here: {done.stderr.strip()}")
    assert (
        "a.mp4: cannot be written: no space left on the disk"
        in done.stdout.strip().splitlines()[-1]
    )
    assert "[out#" not in done.stdout
