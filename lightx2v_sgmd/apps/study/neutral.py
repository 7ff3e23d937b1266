"""Copies of videos that show the picture and tell nothing else, and copies that are spoiled.

Legend: F frames, H height, W width.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lightx2v_sgmd.apps.evaluation.measuring import frames_of
from lightx2v_sgmd.files.video import Frames, write_video
from lightx2v_sgmd.system.errors import UserError, short_line
from lightx2v_sgmd.system.optional_packages import required
from lightx2v_sgmd.untrusted.reading import open_file

_COARSE: Final = 10
"""Blocks on the shorter side of a spoiled video."""
_HELD: Final = 4
"""Frames for which a spoiled video shows one picture."""
_SPECKLES: Final = 50
"""The most by which a block's colour is changed at random, of 255."""
_LIMIT_S: Final = 600
_H264_NOTES: Final = ("-bsf:v", "filter_units=remove_types=6")
"""Removes the messages in which an encoder writes its name and settings."""


@dataclass(frozen=True)
class Picture:
    """The facts of a video that a browser needs."""

    width: int
    height: int
    fps: float
    duration_s: float
    codec: str


def picture_of(video: Path) -> Picture:
    """Looks at a video without decoding all of it.

    Raises:
        UserError: it cannot be read as a video.
    """
    open_file(video).close()  # ffmpeg would wait for a pipe, and never end with a device
    reader: Any = required("imageio_ffmpeg").read_frames(str(video.absolute()))
    try:
        about = next(reader)
    except (OSError, RuntimeError, StopIteration, KeyError) as error:
        raise UserError(
            f"{video}: cannot be read as a video; make it again or convert it to mp4"
        ) from error
    finally:
        reader.close()
    width, height = about["source_size"]
    codec = str(about["codec"])
    return Picture(width, height, float(about["fps"]), float(about["duration"]), codec)


def copy_picture(video: Path, target: Path, codec: str) -> None:
    """Copies an mp4's pictures, bit for bit, and leaves out its sound, texts and encoder's notes.

    Args:
        video: An mp4 file.
        target: The new file; its folder exists.
        codec: The codec of its pictures.

    Raises:
        UserError: ffmpeg cannot copy it.
    """
    ffmpeg = required("imageio_ffmpeg").get_ffmpeg_exe()
    # Read as mp4 whatever it says it is: a playlist could name other files.
    source = ["-protocol_whitelist", "file", "-f", "mov", "-i", f"file:{video.absolute()}"]
    plain = ["-map", "0:v:0", "-c", "copy", "-map_metadata", "-1", "-map_chapters", "-1"]
    plain += ["-fflags", "+bitexact", "-movflags", "+faststart"]
    plain += _H264_NOTES if codec == "h264" else ()
    command = [ffmpeg, "-nostdin", "-v", "error", "-n", *source, *plain, "-f", "mp4"]
    command.append(f"file:{target.absolute()}")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise UserError(
            f"{video}: cannot be copied ({short_line(reason[-1], 80)}); convert it to mp4 again"
        )


def write_spoiled(video: Path, target: Path) -> None:
    """Writes a copy of a video that anybody sees to be worse, as an mp4 without notes.

    Raises:
        UserError: it cannot be read as a video, or has one frame.
    """
    frames, fps = frames_of(video)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        written = write_video(spoiled(frames), Path(folder) / "spoiled.mp4", fps)
        copy_picture(written, target, "h264")


def spoiled(frames: Frames) -> Frames:
    """The video ``[F, H, W, 3]`` in coarse, speckled blocks, each picture held for four frames."""
    cv2 = required("cv2")
    height, width = frames.shape[1:3]
    factor = _COARSE / min(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    rng = np.random.default_rng(0)
    shown = []
    for frame in frames[::_HELD]:
        coarse = cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.int16)
        # A plain picture would hardly change without them.
        coarse += rng.integers(-_SPECKLES, _SPECKLES + 1, size=coarse.shape, dtype=np.int16)
        blocks = coarse.clip(0, 255).astype(np.uint8)
        shown.append(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST))
    held: Frames = np.repeat(np.stack(shown), _HELD, axis=0)[: len(frames)]
    return held
