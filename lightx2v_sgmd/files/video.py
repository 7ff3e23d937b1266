"""Videos as files: H.264 mp4 through imageio, images as PNG, and contact sheets.

F frames, H height, W width; a video is uint8 RGB ``[F, H, W, 3]``.
"""

from __future__ import annotations

import errno
import io
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.files.images import read_image
from lightx2v_sgmd.outputs import appearing
from lightx2v_sgmd.system.disk import nearest_existing
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import required
from lightx2v_sgmd.untrusted.paths import path_problem
from lightx2v_sgmd.untrusted.reading import open_file

Frames = NDArray[np.uint8]
IMAGE_SUFFIX: Final = ".png"

CRF: Final = 14
"""x264's constant rate factor: 0 is lossless, 18 is called visually lossless."""
MOST_BYTES: Final = 4 * 2**30
"""The most bytes of a video's frames that are read: half a minute in 1080p, three in 480p."""


def write_video(
    frames: Frames, path: str | Path, fps: float, publish: Callable[[Path], None] | None = None
) -> Path:
    """Writes an mp4 that appears complete or not at all.

    Even sizes are written as yuv420p, which every player shows; a size with an odd number in it as
    yuv444p, since yuv420p would have to change the size.

    Args:
        frames: ``[F, H, W, 3]`` uint8.
        path: Ends in ``.mp4``; missing folders are made.
        fps: Frames per second.
        publish: As for ``video_writer``.

    Raises:
        UserError: the file cannot be written there, or the disk is full.
    """
    with video_writer(path, fps, publish) as write:
        write(np.asarray(frames))
    return Path(path)


def write_frames(
    frames: Frames, path: str | Path, fps: float, publish: Callable[[Path], None] | None = None
) -> Path:
    """Writes a video as mp4, or an image, which is a video of one frame, as PNG.

    Args:
        frames: ``[F, H, W, 3]`` uint8.
        path: Ends in ``.mp4`` or ``.png``; missing folders are made.
        fps: Frames per second of an mp4.
        publish: As for ``video_writer``.

    Raises:
        UserError: the file cannot be written there, or the disk is full.
    """
    with frame_writer(path, fps, publish) as write:
        write(np.asarray(frames))
    return Path(path)


def frame_writer(
    path: str | Path, fps: float, publish: Callable[[Path], None] | None = None
) -> AbstractContextManager[Callable[[Frames], None]]:
    """``video_writer`` for an mp4 and ``image_writer`` for a PNG, by the path's suffix."""
    if Path(path).suffix.lower() == IMAGE_SUFFIX:
        return image_writer(path, publish)
    return video_writer(path, fps, publish)


@contextmanager
def image_writer(
    path: str | Path, publish: Callable[[Path], None] | None = None
) -> Iterator[Callable[[Frames], None]]:
    """Gives a function that takes the one frame of an image; see ``video_writer``.

    Args:
        path: Ends in ``.png``; missing folders are made.
        publish: As for ``video_writer``.

    Yields:
        What takes a frame ``[1, H, W, 3]`` uint8.

    Raises:
        UserError: the file cannot be written there, or the disk is full.
    """
    from PIL import Image

    with _appearing(Path(path), publish) as temporary:
        taken: list[Frames] = []
        yield taken.append
        frames = np.concatenate(taken) if taken else np.zeros((0, 0, 0, 3), np.uint8)
        if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) != 1:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 [1, H, W, 3]")
        Image.fromarray(frames[0]).save(temporary, format="PNG")


@contextmanager
def video_writer(
    path: str | Path, fps: float, publish: Callable[[Path], None] | None = None
) -> Iterator[Callable[[Frames], None]]:
    """Gives a function that appends frames to an mp4, chunk by chunk; see ``write_video``.

    The file appears when the block ends well; after an exception nothing is there.

    Args:
        path: Ends in ``.mp4``; missing folders are made.
        fps: Frames per second.
        publish: Gives the finished file its name; by default it replaces what has that name.

    Yields:
        What takes frames ``[F, H, W, 3]`` uint8, all of one size.

    Raises:
        UserError: the file cannot be written there, or the disk is full.
    """
    imageio_ffmpeg = required("imageio_ffmpeg")
    path = Path(path)
    if fps <= 0:
        raise ValueError(f"fps is {fps}, not positive")
    with _appearing(path, publish) as temporary:
        encoder = _Encoder(temporary, fps)
        try:
            yield encoder.write
        except OSError:  # ffmpeg has ended, which says less than what the disk says
            _refuse_full_disk(temporary.parent)
            raise
        finally:
            encoder.close()
        if not encoder.frames:
            raise ValueError(f"{path}: no frames were written")
        # ffmpeg may fail after its last frame was accepted (a full disk), and imageio says nothing.
        try:
            written, _ = imageio_ffmpeg.count_frames_and_secs(str(temporary))
        except RuntimeError as error:
            _refuse_full_disk(temporary.parent)
            raise OSError(errno.EIO, "ffmpeg did not finish the file") from error
        if written != encoder.frames:
            _refuse_full_disk(temporary.parent)
            raise OSError(errno.EIO, f"ffmpeg wrote {written} of {encoder.frames} frames")


def _refuse_full_disk(folder: Path) -> None:
    """Raises what the system says if no megabyte can be written to a folder."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        left = memoryview(bytes(2**20))
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())


class _Encoder:
    """ffmpeg behind imageio, started by the first frames, which tell their size."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps, self.frames = path, fps, 0
        self._writer: Any = None

    def write(self, frames: Frames) -> None:
        frames = np.ascontiguousarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 [F, H, W, 3]")
        if self._writer is None:
            self._writer = self._start(even=not (frames.shape[1] % 2 or frames.shape[2] % 2))
        for frame in frames:
            self._writer.append_data(frame)
        self.frames += len(frames)

    def _start(self, even: bool) -> Any:
        import imageio.v2 as imageio

        options: dict[str, Any] = {
            "format": "FFMPEG",
            "mode": "I",
            "fps": self.fps,
            "codec": "libx264",
            "quality": None,
            "pixelformat": "yuv420p" if even else "yuv444p",
            "macro_block_size": 1,
            "ffmpeg_log_level": "quiet",  # its failures are told in one line
            "output_params": ["-crf", str(CRF), "-movflags", "+faststart"],
        }
        return imageio.get_writer(self.path, **options)

    def close(self) -> None:
        if self._writer is not None:
            log = logging.getLogger("imageio_ffmpeg")
            before, log.disabled = log.disabled, True  # a failure is told in one line
            try:
                self._writer.close()
            finally:
                log.disabled = before


def read_video(path: str | Path, most: int | None = None) -> tuple[Frames, float]:
    """Reads a video back: ``[F, H, W, 3]`` uint8 and its frames per second.

    Args:
        path: The file.
        most: The most frames that are read, from the first one; None reads all.

    Raises:
        UserError: the path is a pipe or a device, or the frames take more than ``MOST_BYTES``: a
            small file may hold a hundred thousand black pictures.
        OSError, RuntimeError, IndexError: it cannot be read as a video.
    """
    required("imageio_ffmpeg")
    import imageio.v2 as imageio

    open_file(Path(path)).close()
    reader: Any = imageio.get_reader(path, format="FFMPEG")
    frames: list[Frames] = []
    with reader:
        fps = float(reader.get_meta_data()["fps"])
        for picture in itertools.islice(reader, most):
            frames.append(np.asarray(picture))
            if len(frames) * frames[0].nbytes > MOST_BYTES:
                raise UserError(
                    f"{path}: has more than {MOST_BYTES / 2**30:g} GiB of pictures; cut it, or "
                    "make it smaller"
                )
        return np.stack(frames), fps


def read_frames(path: Path) -> Frames:
    """Reads a video, or an image, which is a video of one frame: ``[F, H, W, 3]`` uint8.

    Raises:
        UserError, OSError, RuntimeError, IndexError: as ``read_video``, and ``images.read_image``.
    """
    if path.suffix.lower() != IMAGE_SUFFIX:
        return read_video(path)[0]
    return np.asarray(read_image(path))[None]


def small_gif(frames: Frames, fps: float, side: int = 192, most: int = 32) -> bytes:
    """Makes a small animated GIF of a video, for places that show no mp4.

    Args:
        frames: ``[F, H, W, 3]``.
        fps: Frames per second.
        side: The most pixels of the longer side.
        most: The most pictures; of a longer video every n-th frame is shown, at the same speed.
    """
    from PIL import Image

    every = -(-len(frames) // most)
    height, width = frames.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    first, *others = (Image.fromarray(frame).resize(size) for frame in frames[::every])
    file = io.BytesIO()
    duration = max(20, round(1000 * every / fps))
    first.save(file, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    return file.getvalue()


def contact_sheet(
    videos: Sequence[Frames],
    path: str | Path,
    *,
    captions: Sequence[str] | None = None,
    columns: int = 6,
    publish: Callable[[Path], None] | None = None,
) -> Path:
    """Writes a PNG with one row per video: frames from first to last, the caption above them.

    Args:
        videos: Each ``[F, H, W, 3]`` uint8; sizes may differ.
        path: Ends in ``.png``; missing folders are made.
        captions: One per video.
        columns: Frames per video, at most; small frames are enlarged by a whole factor.
        publish: As for ``video_writer``.

    Raises:
        UserError: the file cannot be written there.
    """
    from PIL import Image, ImageDraw

    if not videos or (captions is not None and len(captions) != len(videos)):
        raise ValueError(f"{len(videos)} videos for {len(captions or [])} captions")
    gap, caption_height = 4, 16 if captions is not None else 0
    rows = [_strip(video, columns, gap) for video in videos]
    width = max(row.shape[1] for row in rows) + 2 * gap
    height = sum(row.shape[0] + caption_height + gap for row in rows) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for index, row in enumerate(rows):
        if captions is not None:
            draw.text((gap, top), captions[index], fill="black")
        sheet.paste(Image.fromarray(row), (gap, top + caption_height))
        top += row.shape[0] + caption_height + gap
    path = Path(path)
    with _appearing(path, publish) as temporary:
        sheet.save(temporary)
    return path


def write_content(
    path: str | Path, content: bytes, publish: Callable[[Path], None] | None = None
) -> None:
    """Writes a video or image that was encoded elsewhere; the file appears whole.

    Args:
        path: The file; missing folders are made.
        content: The file's content.
        publish: As for ``video_writer``.

    Raises:
        UserError: the file cannot be written there, or the disk is full.
    """
    with _appearing(Path(path), publish) as temporary:
        temporary.write_bytes(content)


def _strip(video: Frames, columns: int, gap: int) -> Frames:
    """Evenly spaced frames of a video side by side, at least 96 pixels high."""
    shown = np.unique(np.linspace(0, len(video) - 1, columns).round().astype(int))
    factor = max(1, round(96 / video.shape[1]))
    frames = video[shown].repeat(factor, axis=1).repeat(factor, axis=2)
    padded = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    strip: Frames = np.concatenate(list(padded), axis=1)[:, :-gap]
    return strip


def check_writable(path: str | Path, *, folder: bool = False) -> None:
    """Raises if ``path`` could not be written, without leaving anything there.

    Args:
        path: A file, or with ``folder`` a folder, that need not exist; nor need its parents.

    Raises:
        UserError: says what is in the way. Call it before the work whose result goes there.
    """
    if problem := path_problem(path):
        raise UserError(f"{path}: {problem}; choose another output")
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        kind = "a file, not a folder" if folder else "a folder, not a file"
        raise UserError(f"{path}: is {kind}; choose another output")
    nearest = nearest_existing(path if folder else path.parent)
    if not nearest.is_dir():
        raise UserError(f"{path}: {nearest} is not a folder; choose another output")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def _appearing(path: Path, publish: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Gives a name beside ``path`` to write to, which becomes ``path`` if all goes well."""
    try:
        with appearing(path, suffix=path.suffix, publish=publish) as temporary:
            yield temporary
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = (error.strerror or str(error)).strip()
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        reason = "no space left on the disk"
    reason = reason.splitlines()[-1] if reason else type(error).__name__
    return UserError(f"{path}: cannot be written: {reason}; choose another output or make room")
