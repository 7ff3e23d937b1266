"""All measures of one video, under the keys that ``metrics.json`` and ``metrics.jsonl`` have."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.measures import optical_flow
from lightx2v_sgmd.measures.frames import measure_frames


def measure_video(video: NDArray[np.uint8], fps: float) -> dict[str, float]:
    """Measures a video.

    Args:
        video: ``[F, H, W, 3]`` RGB, two frames or more.
        fps: Frames per second.

    Returns:
        ``optflow`` and ``dynamic`` of ``optical_flow``, and the fields of ``FrameMeasures``.
    """
    field = optical_flow.flow(video)
    return {
        "optflow": optical_flow.mean_flow(field),
        "dynamic": float(optical_flow.is_dynamic(video, fps)),
        **asdict(measure_frames(video, field)),
    }
