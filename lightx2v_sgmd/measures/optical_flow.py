"""Motion by optical flow, for any video, with no captions.

``OptFlow`` is Table 1's measure in arXiv 2605.30116 (Sec. 4.1): the mean absolute flow over frames
and pixels. The paper's flow is UniMatch's, a network; ours is OpenCV's DIS, which needs no weights.
``DynDeg`` is VBench's dynamic degree (arXiv 2311.17982) with its thresholds, on the same flow.

Legend: F frames, H height, W width.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.system.optional_packages import required

cv2 = required("cv2")

Array = NDArray[np.float32]

WORKING_SIZE: Final = 128
"""Pixels of the shorter side below which frames are enlarged by a whole factor.

DIS looks at patches of 8 pixels, which in a frame of 32 would see little but edges.
"""
CONTRAST: Final = 8
"""Grey levels near a pixel below which nothing can be seen to move there.

Where an image is flat, flow is what smoothing makes of the surroundings: around a small sprite on
an even background it would be six times the motion that there is.
"""
NEAR: Final = 1 / 16
"""The distance that counts as near, as a share of the shorter side."""
TOP_SHARE: Final = 0.05
"""Dynamic degree looks at the pixels that move most."""
THRESHOLD: Final = 6.0 / 256
"""Pixels per frame from which a pair of frames counts as moving, per pixel of the shorter side."""
FPS: Final = 8.0
"""Frames per second at which dynamic degree looks."""


def flow(video: NDArray[np.uint8]) -> Array:
    """Optical flow from each frame to the next.

    Args:
        video: ``[F, H, W, 3]`` RGB.

    Returns:
        ``[F - 1, h, w, 2]``, (x right, y down) in pixels of the video per frame, on the grid of the
        enlarged frames; zero where the first frame of a pair has no contrast.
    """
    factor = max(1, -(-WORKING_SIZE // min(video.shape[1:3])))
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in video]
    if factor > 1:
        size = (video.shape[2] * factor, video.shape[1] * factor)
        grey = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in grey]
    # The one of OpenCV's three presets that is nearest to the truth on small, slow sprites.
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    if factor == 1:
        dis.setFinestScale(1)  # its own 2 works on quarter-sized frames: 20% off on slow motion
    pairs = list(zip(grey[:-1], grey[1:], strict=True))
    found = np.stack([np.asarray(dis.calc(a, b, None), np.float32) for a, b in pairs]) / factor
    reach = max(1, round(NEAR * min(grey[0].shape)))
    near = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    contrast = np.stack([cv2.subtract(cv2.dilate(a, near), cv2.erode(a, near)) for a, _ in pairs])
    return np.where(contrast[..., None] > CONTRAST, found, 0).astype(np.float32)


def mean_flow(field: Array) -> float:
    """Mean length over frames and pixels, in pixels per frame."""
    return float(np.hypot(field[..., 0], field[..., 1]).mean())


def top_flow(field: Array) -> Array:
    """``[F - 1]``: the mean length of the fastest twentieth of the pixels, pair by pair."""
    lengths = np.hypot(field[..., 0], field[..., 1]).reshape(len(field), -1)
    count = max(1, int(lengths.shape[1] * TOP_SHARE))
    fastest = np.partition(lengths, -count, axis=1)[:, -count:]
    return fastest.mean(1).astype(np.float32)  # type: ignore[no-any-return]


def is_dynamic(video: NDArray[np.uint8], fps: float) -> bool:
    """VBench's verdict: whether enough pairs of frames have parts that move fast.

    At ``FPS`` frames per second, a pair moves if its ``top_flow`` is above 6 pixels for frames 256
    pixels high (in proportion for others); a video is dynamic if 4 pairs in 16 frames move.

    Args:
        video: ``[F, H, W, 3]`` RGB.
        fps: Frames per second of the video.
    """
    frames = video[:: max(1, round(fps / FPS))]
    if len(frames) < 2:
        return False
    moving = top_flow(flow(frames)) > THRESHOLD * min(video.shape[1:3])
    return int(moving.sum()) >= max(1, round(4 * len(frames) / 16))
