"""Measures of one video's frames: light, colour, sharpness, flicker.

Legend: F frames, H height, W width. Luma is Rec. 601's 0.299 R + 0.587 G + 0.114 B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.measures.optical_flow import Array
from lightx2v_sgmd.system.optional_packages import required

cv2 = required("cv2")

_LUMA: Final = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class FrameMeasures:
    """Measures of a video, each the mean over its frames or pairs of frames.

    Attributes:
        brightness: Mean luma, 0 (black) to 1 (white).
        contrast: Standard deviation of luma within a frame (RMS contrast), 0 to 0.5.
        saturation: Mean saturation of HSV, (max - min) / max of a pixel's channels; 0 to 1. Black
            pixels have none.
        colourfulness: Hasler and Suesstrunk's M (SPIE 2003), on channels from 0 to 255: 0 is grey,
            15 slightly and 59 quite colourful.
        sharpness: Variance of the Laplacian of luma, on a scale of 0 to 255.
        change: Mean absolute difference of luma from a frame to the next, 0 to 255. VBench's
            temporal flickering is (255 - change) / 255, on colours.
        flicker: The same after the next frame was moved back along the optical flow, so that
            motion does not count.
    """

    brightness: float
    contrast: float
    saturation: float
    colourfulness: float
    sharpness: float
    change: float
    flicker: float


def measure_frames(video: NDArray[np.uint8], field: Array) -> FrameMeasures:
    """Measures a video.

    Args:
        video: ``[F, H, W, 3]`` RGB.
        field: ``[F - 1, h, w, 2]``, the optical flow of ``optical_flow.flow``.
    """
    lumas = [(frame @ _LUMA).astype(np.float32) for frame in video]
    pairs = list(zip(lumas[:-1], lumas[1:], strict=True))
    changes = [np.abs(second - first).mean() for first, second in pairs]
    flickers = [
        moved_difference(first, second, motion)
        for (first, second), motion in zip(pairs, field, strict=True)
    ]
    return FrameMeasures(
        brightness=_mean(luma.mean() / 255 for luma in lumas),
        contrast=_mean(luma.std() / 255 for luma in lumas),
        saturation=_mean(saturation(frame) for frame in video),
        colourfulness=_mean(colourfulness(frame) for frame in video),
        sharpness=_mean(cv2.Laplacian(luma, cv2.CV_32F).var() for luma in lumas),
        change=_mean(changes),
        flicker=_mean(flickers),
    )


def saturation(frame: NDArray[np.uint8]) -> float:
    """Mean saturation of HSV of a frame ``[H, W, 3]``, 0 to 1."""
    most = frame.max(-1).astype(np.float64)
    least = frame.min(-1).astype(np.float64)
    return float(((most - least) / np.maximum(most, 1)).mean())


def colourfulness(frame: NDArray[np.uint8]) -> float:
    """Hasler and Suesstrunk's M of a frame ``[H, W, 3]``: spread and offset of opponent colours."""
    red, green, blue = (frame[..., channel].astype(np.float64) for channel in range(3))
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    offset = np.hypot(red_green.mean(), yellow_blue.mean())
    return float(spread + 0.3 * offset)


def moved_difference(first: Array, second: Array, motion: Array) -> float:
    """Mean absolute difference of a frame from the next one, moved back along the flow.

    Pixels that moved out of the picture do not count.

    Args:
        first: ``[H, W]`` luma.
        second: ``[H, W]``, the next frame's.
        motion: ``[h, w, 2]`` flow from the first to the second, in pixels of ``[H, W]``.
    """
    height, width = first.shape
    if motion.shape[:2] != (height, width):
        motion = cv2.resize(motion, (width, height), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + motion[..., 0], y + motion[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    if not inside.any():
        return float(np.abs(second - first).mean())
    moved = cv2.remap(second, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return float(np.abs(moved - first)[inside].mean())


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return float(np.mean(listed)) if listed else 0.0
